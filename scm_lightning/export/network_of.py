# SPDX-License-Identifier: Apache-2.0
"""The network that a file names, built without trusting the file.

Only networks of this package are built, and models of diffusers whose call is known: nothing is
imported by a name in a file. What is built has no more parts, and none larger, than the weights in
the file are for: that is found out without memory for them.
"""

import importlib
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from scm_lightning import networks
from scm_lightning.core import DiscreteProcess, EDMProcess, RectifiedFlowProcess, VPProcess
from scm_lightning.given_files import meant
from scm_lightning.networks.diffusers_maps import MAPS
from scm_lightning.teachers import weights_mismatch

PROCESSES = {
    each.__name__: each for each in (DiscreteProcess, EDMProcess, RectifiedFlowProcess, VPProcess)
}
"""Processes that a network of something else than F was trained on, by name."""
LARGEST = 1 << 24
"""Largest whole number among the arguments of a network."""
MOST_NESTED = 8
UNBUILT = (TypeError, ArithmeticError, LookupError, AttributeError, RuntimeError, MemoryError)
"""Errors of building from arguments that do not fit."""
MODULES_PER_WEIGHT = 8
"""Modules that a network may have for each of its weights: blocks, norms, functions."""


def network_names() -> dict[str, type[nn.Module]]:
    """Networks of this package, by name."""
    own = {name: getattr(networks, name) for name in networks.__all__}
    return {
        name: each
        for name, each in own.items()
        if isinstance(each, type)
        and issubclass(each, nn.Module)
        and "u" in inspect.signature(each.forward).parameters
    }


def can_be_built(spec: Any) -> bool:
    """Tell whether a configuration names only what `build_network` builds.

    Args:
        spec: `class_path` and `init_args` of a network, or an argument.
    """
    if isinstance(spec, Mapping) and "class_path" in spec:
        try:
            _class_of(spec)
        except ValueError:
            return False
    if isinstance(spec, Mapping):
        return all(map(can_be_built, spec.values()))
    if isinstance(spec, list | tuple):
        return all(map(can_be_built, spec))
    return spec is None or isinstance(spec, bool | int | float | str)


def build_network(spec: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """Build a network and load its weights.

    Args:
        spec: `class_path` and `init_args`.
        weights: its parameters and buffers, by name.

    Returns:
        The network, in evaluation, without gradients.

    Raises:
        ValueError: if the class is not one of those that are built, its arguments do not fit, or
            the weights are those of another network.
    """
    name = _class_of(spec).__name__
    try:
        with torch.device("meta"), _bounded(MODULES_PER_WEIGHT * (len(weights) + 8)):
            planned = _built(spec)
        if mismatch := weights_mismatch(weights, planned):
            raise ValueError(f"the weights are of another network: {mismatch}")
        _check_buffers(planned, weights)
        for weight, numbers in weights.items():
            if numbers.is_floating_point() and not bool(torch.isfinite(numbers).all()):
                raise ValueError(f"its weight {weight} is not finite; export another checkpoint")
        with torch.random.fork_rng(devices=[]):  # the user's random numbers stay where they are
            network: nn.Module = _built(spec)
    except UNBUILT as error:
        line = (str(error).splitlines() or [""])[0]
        raise ValueError(f"no {name} can be built of its arguments: {line:.120}") from error
    network.load_state_dict(dict(weights))
    return network.eval().requires_grad_(False)


def _check_buffers(planned: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse tables that are computed, and so are no weights, if they are far larger than these."""
    computed = sum(each.numel() for each in planned.buffers())
    if computed > LARGEST + 4 * sum(each.numel() for each in weights.values()):
        raise ValueError(
            f"its arguments ask for tables of {computed:,} numbers, far more than its weights have"
        )


def untrained_network(spec: Mapping[str, Any]) -> nn.Module:
    """Build a network whose weights come later, as a part of a model of diffusers.

    Args:
        spec: `class_path` and `init_args`.

    Raises:
        ValueError: if the class is not one of those that are built, or has no such argument.
    """
    network: nn.Module = _built(spec)
    return network


def _class_of(spec: Mapping[str, Any]) -> Any:
    """The class that a configuration names, if it is one of those that are built."""
    path = spec.get("class_path")
    if not isinstance(path, str):
        raise ValueError(f"a class has a name, got {path!r:.40}")
    package, _, name = path.rpartition(".")
    room = package.partition(".")[0]
    if room == "diffusers" and name in MAPS:
        import scm_lightning.torchvision_guard  # noqa: F401  diffusers imports torchvision

        try:
            return getattr(importlib.import_module("diffusers"), name)
        except ImportError as error:
            raise ValueError(
                f"{name} needs diffusers, which is not installed; install it"
            ) from error
    known = network_names()
    if room in ("", "scm_lightning") and name in known:
        return known[name]
    if room in ("", "scm_lightning") and name in PROCESSES:
        return PROCESSES[name]
    raise ValueError(
        f"networks that can be built of a file are {', '.join(known)}, with models of diffusers, "
        f"got {path:.60}{meant(name, known)}; give the network yourself, network=..."
    )


def _built(spec: Mapping[str, Any], depth: int = 0) -> Any:
    """The object that a configuration describes."""
    kind, given = _class_of(spec), spec.get("init_args") or {}
    if depth > MOST_NESTED:
        raise ValueError(f"a network is described in at most {MOST_NESTED} levels")
    is_own = kind.__module__.startswith("scm_lightning.")
    hints = get_type_hints(kind.__init__) if is_own else {}
    known = inspect.signature(kind.__init__).parameters
    arguments = {}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{kind.__name__} has no argument {name:.40}{meant(name, known)}")
        arguments[name] = _argument(value, hints.get(name), depth)
    return kind(**arguments)


def _argument(value: Any, hint: Any, depth: int) -> Any:
    """An argument of a network: a number, a text, a list of them, or an object."""
    if isinstance(value, Mapping) and "class_path" in value:
        return _built(value, depth + 1)
    if isinstance(value, Mapping) and is_dataclass(hint) and isinstance(hint, type):
        return hint(**{name: _argument(each, None, depth) for name, each in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_argument(each, None, depth) for each in value)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"arguments must be at most {LARGEST:,}, got {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"arguments must be finite, got {value}")
    return value


@contextmanager
def _bounded(most: int) -> Iterator[None]:
    """Refuse more modules than a number, as they are built."""
    count = 0

    def counted(*of_module: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ValueError(f"the network has more than {most} parts, the file weights for fewer")

    hook = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()
