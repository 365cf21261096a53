# SPDX-License-Identifier: Apache-2.0
"""One call, made four ways: plainly, on dual numbers, by `torch.func.jvp`, by differences.

The CPU's generator is seeded alone: `torch.manual_seed` notes a stack for every absent device,
which is half of the time of a small call.
"""

import dataclasses
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

STEP = 1e-4
"""Step h of the differences, of fourth order: truncation h^4 = 1e-16 times a fifth derivative,
rounding 1e-16 / h = 1e-12."""

JUMP = 1.0
"""Difference of the slopes over h and 2 h at a jump: a quarter of the jump over h, so from 4e-4 on.
Those of a smooth function differ by h^2 times its third derivative."""

Outputs = list[Tensor | float]
Function = Callable[..., object]
Build = Callable[[], tuple[Function, Sequence[Tensor]]]
"""Makes the function anew, with the tensors of its state: calls must not see each other's."""


@lru_cache
def engine() -> ModuleType:
    """The module under test: `DualNumbers` with its `join` and `part`, and `TangentError`."""
    return importlib.import_module(os.environ.get("TANGENT_ENGINE", "scm_lightning.autodiff.dual"))


@dataclass
class Call:
    """What a call gave: numbers, tangents of the dual ones, gradients of leaves and state."""

    values: Outputs
    tangents: list[Tensor | None]
    gradients: list[Tensor | None] | None


class Mistake(AssertionError):  # noqa: N818  a verdict, not a failure of this code
    """A difference that counts, by kind."""


def floating(x: object) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def flat(out: object) -> Iterator[Tensor | float]:
    """Tensors and Python numbers of any nest of containers and dataclasses, in order."""
    if isinstance(out, Tensor | float | complex):
        yield out
    elif isinstance(out, list | tuple):
        for each in out:
            yield from flat(each)
    elif isinstance(out, dict) or dataclasses.is_dataclass(out):
        yield from flat(list((out if isinstance(out, dict) else vars(out)).values()))


def dense(x: Tensor) -> Tensor:
    return x if x.layout == torch.strided else x.to_dense()


def fresh(leaf: Tensor) -> Tensor:
    """A copy that may be written into, where a copy keeps the layout that the sample is about."""
    copy = leaf.clone()
    return copy if copy.stride() == leaf.stride() and leaf.layout == torch.strided else leaf


def gradients(outs: Sequence[object], inputs: Sequence[Tensor]) -> list[Tensor | None] | None:
    """Pull a fixed cotangent back through every output that has a graph; None where that raises."""
    ends = [dense(out) for out in outs if floating(out) and out.requires_grad]
    if not ends or not inputs:
        return [None] * len(inputs)
    cotangents = []
    for index, end in enumerate(ends):
        ramp = torch.arange(end.numel(), dtype=torch.float64).view(end.shape)
        wave = torch.cos(1.3 * ramp + index)
        if end.is_complex():
            wave = torch.complex(wave, torch.sin(0.7 * ramp))
        cotangents.append(wave.to(end.dtype))
    try:
        return list(torch.autograd.grad(ends, inputs, cotangents, allow_unused=True))
    except (RuntimeError, NotImplementedError):  # without a derivative in reverse
        return None


def values_of(outs: Sequence[object]) -> Outputs:
    return [dense(out.detach()) if isinstance(out, Tensor) else out for out in outs]


def leaves_of(primals: Sequence[Tensor]) -> list[Tensor]:
    return [primal.detach().requires_grad_() for primal in primals]


def call_plainly(build: Build, primals: Sequence[Tensor]) -> Call:
    function, state = build()
    leaves = leaves_of(primals)
    torch.default_generator.manual_seed(0)
    outs = list(flat(function(*map(fresh, leaves))))
    trained = [each for each in state if each.requires_grad]
    return Call(values_of([*outs, *state]), [], gradients(outs, [*leaves, *trained]))


def call_on_duals(
    build: Build, primals: Sequence[Tensor], tangents: Sequence[Tensor], chosen: Sequence[bool]
) -> Call:
    """Call with the chosen leaves as dual numbers; raises what the engine raises."""
    function, state = build()
    leaves = leaves_of(primals)
    kinds = [type(each) for each in state]
    torch.default_generator.manual_seed(0)
    arguments = [fresh(leaf) for leaf in leaves]
    arguments = [each.view_as(each) if each.is_leaf else each for each in arguments]
    versions = [each._version for each in arguments]
    with engine().DualNumbers() as level:
        joined = [
            level.join(argument, tangent) if dual else argument
            for argument, tangent, dual in zip(arguments, tangents, chosen, strict=True)
        ]
        outs = list(flat(function(*joined)))
        once = {id(out): out for out in outs if isinstance(out, Tensor)}
        parts = {key: level.part(out) for key, out in once.items()}
        pairs = [parts.get(id(out), (out, None)) for out in outs]
        outs, found = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        for argument, version, dual in zip(arguments, versions, chosen, strict=True):
            if not dual and argument._version == version and type(argument) is not Tensor:
                raise Mistake("type: an argument that was only read became a dual number")
    if any(type(leaf) is not Tensor for leaf in leaves):
        raise Mistake("type: a leaf became a dual number")
    if [type(each) for each in state] != kinds:
        raise Mistake("type: a parameter or buffer changed its type")
    trained = [each for each in state if each.requires_grad]
    return Call(
        values_of([*outs, *state]),
        [None if tangent is None else dense(tangent.detach()) for tangent in found],
        gradients(outs, [*leaves, *trained]),
    )


def tangents_by_jvp(
    build: Build, primals: Sequence[Tensor], tangents: Sequence[Tensor], chosen: Sequence[bool]
) -> list[Tensor]:
    """Tangents of the floating outputs by `torch.func.jvp`.

    If leaves held fixed are written into, they too must be arguments, with zero tangents.
    """
    moving = [index for index, dual in enumerate(chosen) if dual]

    def along(indices: Sequence[int]) -> list[Tensor]:
        function, _ = build()

        def outputs(*given: Tensor) -> tuple[Tensor, ...]:
            torch.default_generator.manual_seed(0)
            arguments = list(primals)
            for index, each in zip(indices, given, strict=True):
                arguments[index] = each
            outs = list(flat(function(*map(fresh, arguments))))
            if not all(isinstance(out, Tensor) for out in outs):
                raise TypeError("a Python number among the outputs")
            return tuple(out for out in outs if floating(out))

        start = tuple(primals[index] for index in indices)
        zeros = [tangents[i] if chosen[i] else torch.zeros_like(tangents[i]) for i in indices]
        return [dense(each) for each in torch.func.jvp(outputs, start, tuple(zeros))[1]]

    try:
        return along(moving)
    except (RuntimeError, NotImplementedError):
        if len(moving) == len(primals):
            raise
        return along(range(len(primals)))


def tangents_by_differences(
    build: Build, primals: Sequence[Tensor], tangents: Sequence[Tensor], chosen: Sequence[bool]
) -> tuple[list[Tensor], float]:
    """Tangents of the floating outputs and Python numbers, of fourth order in the step.

    Beside them, how far slopes over the step and over two differ, of the largest: it is near a kink
    that they do.
    """

    def at(step: float) -> list[Tensor]:
        function, _ = build()
        torch.default_generator.manual_seed(0)
        moved = [
            primal + step * tangent if dual else primal.detach()
            for primal, tangent, dual in zip(primals, tangents, chosen, strict=True)
        ]
        outs = flat(function(*map(fresh, moved)))
        return [
            dense(out.detach()) if isinstance(out, Tensor) else torch.as_tensor(out).double()
            for out in outs
            if floating(out) or not isinstance(out, Tensor)
        ]

    near, far = zip(at(STEP), at(-STEP), strict=True), zip(at(2 * STEP), at(-2 * STEP), strict=True)
    slopes, doubt = [], 0.0
    for (up, down), (further_up, further_down) in zip(near, far, strict=True):
        near_slope, far_slope = (up - down) / (2 * STEP), (further_up - further_down) / (4 * STEP)
        gap = (near_slope - far_slope).abs()
        if bool(((gap > JUMP) & (gap > 0.1 * near_slope.abs())).any()):
            raise ValueError("the function jumps there")
        slopes.append((8 * (up - down) - (further_up - further_down)) / (12 * STEP))
        if not bool(slopes[-1].isfinite().all()):
            raise ValueError("the differences leave the domain")
        if gap.numel():
            doubt = max(doubt, float(gap.max() / near_slope.abs().max().clamp(min=1e-3)))
    return slopes, doubt
