# SPDX-License-Identifier: Apache-2.0
"""Weights of one network as the start of another, of another architecture.

A weight is copied if it has the same name and shape, belongs to the same kind of layer, and means
the same: layers that read the time's features do so only if both embed the time alike.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

LEAST_SHARE = 0.5
"""Share of a student's numbers that must come from elsewhere: less is another architecture."""
MOST_NAMED = 5
"""Most kinds of weights that are named as new."""
OF_THE_TIME = ("time.", "position.", "augment.")
"""Parts of a module with a `time_embedding` that read the features of the time."""

Weights = nn.Module | Mapping[str, Tensor]
"""A network, or the weights of one by name, whose layers are not known."""


@dataclass(frozen=True)
class Transplant:
    """Weights that fit a network, and reasons why others stay as they are.

    Attributes:
        tensors: those that fit, by name.
        left: names of the network's other weights, with the reason.
        unused: names of the source's other weights.
        share: share of the network's numbers that fit.
    """

    tensors: dict[str, Tensor]
    left: dict[str, str]
    unused: list[str]
    share: float

    def described(self) -> str:
        """One line: how much was copied, and what was not, and why."""
        new = _listed(f"{_kind(name)} ({reason})" for name, reason in self.left.items())
        unused = _listed(map(_kind, self.unused))
        return f"copied {len(self.tensors)} weights, {self.share:.1%} of the numbers" + "".join(
            f"; {word}: {names}" for word, names in (("new", new), ("unused", unused)) if names
        )


def transplant(source: Weights, network: nn.Module) -> Transplant:
    """Find the weights of one network that another can start with.

    Args:
        source: whose weights they are.
        network: the network that is to start; it is not changed.
    """
    theirs = source.state_dict() if isinstance(source, nn.Module) else source
    own = network.state_dict()
    left: dict[str, str] = {}
    for name, weight in own.items():
        if reason := _misfit(name, weight, theirs, source, network):
            left[name] = reason
    found = {name: theirs[name].to(own[name].dtype) for name in own if name not in left}
    total = sum(weight.numel() for weight in own.values())
    share = sum(weight.numel() for weight in found.values()) / max(total, 1)
    return Transplant(found, left, sorted(theirs.keys() - found.keys()), share)


def _misfit(
    name: str, weight: Tensor, theirs: Mapping[str, Tensor], source: Weights, network: nn.Module
) -> str:
    """Reason why a weight can't be copied; empty if it can."""
    if name not in theirs:
        return "not in the source"
    if getattr(source, "process", None) != getattr(network, "process", None):
        return "of another process, prediction or sigma_data in the source"
    if theirs[name].shape != weight.shape:
        return f"{list(theirs[name].shape)} in the source, {list(weight.shape)} here"
    return _other_meaning(name, source, network) if isinstance(source, nn.Module) else ""


def _other_meaning(name: str, source: nn.Module, network: nn.Module) -> str:
    """Reason why a weight means something else in one of two networks; empty if it does not."""
    parts = name.split(".")[:-1]
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        mine, other = network.get_submodule(path), source.get_submodule(path)
        if type(mine) is not type(other):
            return f"{type(other).__name__} in the source, {type(mine).__name__} here"
        embeds = getattr(mine, "time_embedding", None)
        is_of_time = name.removeprefix(f"{path}.").startswith(OF_THE_TIME)
        if is_of_time and embeds != getattr(other, "time_embedding", None):
            return "another embedding of the time"
    return ""


def _kind(name: str) -> str:
    """Name of a weight with a star for the numbers of blocks: `encoder.*.norm.scale.weight`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _listed(kinds: Iterable[str]) -> str:
    """Kinds with their numbers, the most frequent first."""
    counted = Counter(kinds).most_common()
    named = [f"{count} {kind}" if count > 1 else kind for kind, count in counted[:MOST_NAMED]]
    more = sum(count for _, count in counted[MOST_NAMED:])
    return ", ".join([*named, *([f"{more} others"] if more else [])])
