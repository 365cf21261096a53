# SPDX-License-Identifier: Apache-2.0
"""A network whose conditions are bound: from here on it is a function of u and t.

What a sample is conditioned on does not change along the ODE, nor from sampling step to sampling
step, so tangents, objectives and samplers see F(u, t) alone, and F(u, t, t_end) of a flow map.
Axes: B batch, ... data axes.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

NULL_LABEL = -1
"""Label that stands for no class; a network's embedding of it is zero."""
MASK = "_mask"
"""End of the name of a mask: `text_mask` says which of the tokens of `text` there are."""


LABELS = "labels"
"""Name of the classes among the conditions."""


class Conditions(NamedTuple):
    """Conditions of samples, and what stands for none of them.

    Attributes:
        labels: classes, NULL_LABEL for none. (B,) int64, or None.
        named: further conditions, by the names of the network's parameters. (B, ...) each.
        nulls: what stands for none of them, such as the embedding of an empty text, by the same
            names; zeros where a name is missing. Shape of one sample's each.
    """

    labels: Tensor | None = None
    named: Mapping[str, Tensor] = {}
    nulls: Mapping[str, Tensor] = {}

    def names(self) -> list[str]:
        """Names of all that there are, the classes first; a mask belongs to what it masks."""
        named = [name for name in self.named if owner_of(name, self.named) == name]
        return [*([] if self.labels is None else [LABELS]), *named]

    def first(self, num: int) -> "Conditions":
        """Conditions of the first samples of a batch."""
        labels = None if self.labels is None else self.labels[:num]
        return self._replace(labels=labels, named={n: x[:num] for n, x in self.named.items()})

    def without(self, names: Collection[str], where: Tensor | None = None) -> "Conditions":
        """Put what stands for none in the place of some conditions.

        Args:
            names: which; a mask goes with what it masks.
            where: samples whose conditions are replaced, (B,) bool; None for all.
        """
        labels = self.labels
        if labels is not None and LABELS in names:
            labels = _replaced(labels, labels.new_tensor(NULL_LABEL), where)
        named = {
            name: _replaced(x, self.null(name), where) if owner_of(name, self.named) in names else x
            for name, x in self.named.items()
        }
        return self._replace(labels=labels, named=named)

    def dropped(self, probability: float | Mapping[str, float]) -> "Conditions":
        """Hide conditions of samples at random, so that one network learns both.

        Args:
            probability: of hiding all of a sample together; the paper's teachers have 0.1. Or of
                hiding each of several on its own, by their names.

        Raises:
            ValueError: if there is no condition of a name.

        Source: arXiv 2410.11081, Table 5.
        """
        names, dropped = self.names(), self
        if not isinstance(probability, Mapping):
            return self._hidden(names, probability) if names else self
        self.check_names("condition_dropout", probability)
        for name, each in probability.items():
            dropped = dropped._hidden([name], each)
        return dropped

    def _hidden(self, names: Collection[str], probability: float) -> "Conditions":
        if not probability:  # a run that hides nothing draws no random numbers for it
            return self
        x = next(x for x in (self.labels, *self.named.values()) if x is not None)
        return self.without(names, torch.rand(len(x), device=x.device) < probability)

    def check_names(self, option: str, names: Iterable[str]) -> None:
        """Refuse names of conditions that there are none of.

        Args:
            option: what names them, for the message.
            names: the names.

        Raises:
            ValueError: if there is one.
        """
        known = self.names()
        for name in names:
            if name not in known:
                raise ValueError(
                    f"{option} must be of conditions that the data have, "
                    f"{', '.join(known) or 'none'}, got {name}; correct it"
                )

    def check_nulls(self) -> None:
        """Refuse a stand-in for no condition of the data, or of another shape than one sample's.

        Raises:
            ValueError: if there is one.
        """
        for name, null in self.nulls.items():
            if name not in self.named:
                raise ValueError(
                    f"nulls must be of conditions that the data have, "
                    f"{', '.join(self.named) or 'none'}, got {name}; correct it"
                )
            shape = self.named[name].shape[1:]
            if not isinstance(null, Tensor) or null.shape not in (shape, ()):
                got = tuple(null.shape) if isinstance(null, Tensor) else repr(null)
                raise ValueError(
                    f"the null of {name} must be a tensor of one sample's shape, {tuple(shape)}, "
                    f"got {got}; correct it"
                )

    def null(self, name: str) -> Tensor:
        """Stand-in for none of a condition. Shape of one sample's."""
        x = self.named[name]
        null = self.nulls.get(name)
        return x.new_zeros(x.shape[1:]) if null is None else null.to(x)


NO_CONDITIONS = Conditions()


def joined(parts: Sequence[Conditions]) -> Conditions:
    """Conditions of several batches as those of one."""
    first = parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    named = {name: torch.cat([part.named[name] for part in parts]) for name in first.named}
    return Conditions(torch.cat(labels) if labels else None, named, first.nulls)


def owner_of(name: str, names: Collection[str]) -> str:
    """Name of the condition that one belongs to: a mask's owner, or itself."""
    owner = name.removesuffix(MASK)
    return owner if owner in names else name


def _replaced(x: Tensor, null: Tensor, where: Tensor | None) -> Tensor:
    null = null.expand_as(x)
    return null if where is None else torch.where(where.reshape(-1, *[1] * (x.ndim - 1)), null, x)


@dataclass(frozen=True)
class Bound:
    """F(u, t): a network whose other arguments stay as they are.

    Attributes:
        network: called as network(u, t, labels, guidance), with t_end behind them if there is one,
            and further conditions by name: foreign networks need not know of them.
        labels: classes, -1 for none. (B,) int64, or None.
        guidance: guidance scales that the network takes as an input. (B,), or None.
        t_end: times that a flow map leads to, where they are bound too. (B,), radians, or None.
        named: further conditions, by the names of the network's parameters. (B, ...) each.

    Raises:
        ValueError: if a condition is no tensor.
    """

    network: Callable[..., Tensor]
    labels: Tensor | None = None
    guidance: Tensor | None = None
    t_end: Tensor | None = None
    named: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_conditions(labels=self.labels, guidance=self.guidance, t_end=self.t_end, **self.named)

    def __call__(self, u: Tensor, t: Tensor, t_end: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            u: x_t / sigma_data. (B, ...), unit variance.
            t: times. (B,), radians.
            t_end: times that a flow map leads to. (B,), radians, or None for the bound ones.

        Returns:
            F. (B, ...), unit variance.
        """
        t_end = self.t_end if t_end is None else t_end
        ends = () if t_end is None else (t_end,)
        return self.network(u, t, self.labels, self.guidance, *ends, **self.named)

    def first(self, num: int) -> "Bound":
        """The same function of the first samples of a batch."""
        return self._changed(lambda x: x[:num])

    def in_type(self, dtype: torch.dtype) -> "Bound":
        """The same function with floating conditions of another type."""
        return self._changed(lambda x: x.to(dtype) if x.is_floating_point() else x)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Bound":
        labels, guidance, t_end = (
            x if x is None else change(x) for x in (self.labels, self.guidance, self.t_end)
        )
        named = {name: change(x) for name, x in self.named.items()}
        return Bound(self.network, labels, guidance, t_end, named)


def check_conditions(**conditions: Tensor | None) -> None:
    """Refuse one number for a whole batch, which networks take in different ways or not at all.

    Args:
        conditions: by name. (B,) each, or None.

    Raises:
        ValueError: if one is no tensor.
    """
    for name, given in conditions.items():
        if given is not None and not isinstance(given, Tensor):
            raise ValueError(
                f"{name} must be a tensor of one value per sample, (B,), or None, got {given!r}; "
                "pass torch.full((B,), value) for one value everywhere"
            )
