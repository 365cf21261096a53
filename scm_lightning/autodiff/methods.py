# SPDX-License-Identifier: Apache-2.0
r"""Ways to take the derivative of F along the ODE, all of one form.

A method gets a function f(u, t) and a direction (tu, tt), and returns f(u, t) with its reverse
graph and the derivative along the direction without one. Value and derivative see the same dropout
mask, that of an ordinary forward.

Relative to `two_pass`, a whole training step by `dual` takes about two thirds of the time and no
more memory (tests/benchmarks/README.md).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from scm_lightning.autodiff.checkpointing import checkpointed_blocks
from scm_lightning.autodiff.dual import DualNumbers, TangentError, Traced
from scm_lightning.autodiff.repaired_jvp import jvp
from scm_lightning.core import at_least_float32, expand_time

STEP = 1e-4
"""Step of finite differences. Radians."""


@dataclass(frozen=True)
class Function:
    """F(u, t): a network whose other arguments stay as they are.

    Attributes:
        network: called as network(u, t, *conditions).
        conditions: labels, guidance scales and what else it takes. (B, ...) each, or None.
    """

    network: Any
    conditions: tuple[Tensor | None, ...]

    def __call__(self, u: Tensor, t: Tensor) -> Tensor:
        """Evaluate F. (B, ...) and (B,) to (B, ...)."""
        F: Tensor = self.network(u, t, *self.conditions)
        return F

    def in_type(self, dtype: torch.dtype) -> "Function":
        """The same function with floating conditions of another type."""
        cast = (
            x.to(dtype) if x is not None and x.is_floating_point() else x for x in self.conditions
        )
        return Function(self.network, tuple(cast))


class Point(NamedTuple):
    """Where a derivative is taken, and in which direction.

    Attributes:
        u: x_t / sigma_data. (B, ...), unit variance.
        t: times. (B,), radians.
        du_dt: velocity of u. (B, ...), per radian.
        scale: the factor that the derivative is multiplied by, cos(t) sin(t) in Algorithm 1. (B,).
    """

    u: Tensor
    t: Tensor
    du_dt: Tensor
    scale: Tensor

    def tangents(self) -> tuple[Tensor, Tensor]:
        """Tangents of u and t, scaled before they enter the network."""
        return expand_time(self.scale, self.u) * self.du_dt, self.scale

    def in_type(self, dtype: torch.dtype) -> "Point":
        """The same point in another type."""
        return Point(*(x.to(dtype) for x in self))


def same_random_numbers(x: Tensor) -> AbstractContextManager[None]:
    """Context that puts the random state back, so that another pass drops the same activations."""
    devices = [x.device] if x.device.type == "cuda" else []
    forked: AbstractContextManager[None] = torch.random.fork_rng(devices)
    return forked


def by_dual_numbers(f: Function, point: Point) -> tuple[Tensor, Tensor]:
    """One pass of dual numbers; inside a compiled graph, and of fake tensors, of pairs.

    Raises:
        TangentError: if the network returns something that carries no tangent.
    """
    tu, tt = point.tangents()
    if torch.compiler.is_compiling() or is_fake(point.u):
        pair: Any = f(Traced(point.u, tu), Traced(point.t, tt))  # type: ignore[arg-type]
        return (pair.primal, pair.tangent) if isinstance(pair, Traced) else _lost(pair)
    with DualNumbers() as level:
        u, t = (x.view_as(x) for x in (point.u, point.t))  # the caller's own stay plain
        out = f(level.join(u, tu), level.join(t, tt))
        F, tangent = level.part(out) if isinstance(out, Tensor) else (out, None)
        return _lost(out) if tangent is None else (F, tangent)


def _lost(out: Any) -> NoReturn:
    raise TangentError(
        f"the network lost the tangent: it must return a tensor made from u and t, got a "
        f"{type(out).__name__} without"
    )


def by_forward_mode(f: Function, point: Point) -> tuple[Tensor, Tensor]:
    """One pass of torch's forward mode in grad mode: F is the primal of the pass itself."""
    primals = (point.u, point.t)
    F, derivative = jvp(f, primals, point.tangents())
    return F, derivative.detach()


def by_two_passes(f: Function, point: Point) -> tuple[Tensor, Tensor]:
    """Forward mode without grad, then an ordinary forward: the oracle of the other methods."""
    with torch.no_grad(), same_random_numbers(point.u):
        primals = (point.u, point.t)
        _, derivative = jvp(f, primals, point.tangents())
    return f(point.u, point.t), derivative


def by_finite_difference(f: Function, point: Point, h: float = STEP) -> tuple[Tensor, Tensor]:
    """Central difference along the path, which is a rotation: for networks that are opaque.

        u(t + h) = cos(h) u + sin(h) du/dt

    exactly for a pair (x0, z), to second order along a teacher's ODE. F is computed as the run
    does; the differences in float32 or wider, since a difference of values rounded to bfloat16 is
    noise. Rounding adds eps / h and the step h^2 w^2 / 6, with w the highest frequency in t: 1
    for networks that take t, 1000 for those that take 1000 t. A step of 1e-4 serves both; in
    float64 too, since many networks embed their time in float32.

    Source: the rotation, arXiv 2510.08431 (rCM); central differences, FastGen.
    """
    u, t, du_dt, scale = (x.to(_wide_type(point)) for x in point)
    step = torch.full_like(t, h)
    along = expand_time(step.cos(), u) * u
    across = expand_time(step.sin(), u) * du_dt
    with torch.no_grad(), _full_precision(f.network, u.device.type):
        with same_random_numbers(u):
            after = f(along + across, t + step)
        with same_random_numbers(u):
            before = f(along - across, t - step)
        derivative = expand_time(scale / (2 * h), after) * (after - before)
    return f(point.u, point.t), derivative


def _wide_type(point: Point) -> torch.dtype:
    """Of u and t, at least float32: half of a step must not be lost in t."""
    return torch.promote_types(at_least_float32(point.u).dtype, point.t.dtype)


@contextmanager
def _full_precision(network: Any, device_type: str) -> Iterator[None]:
    """Leave autocast, and hold weights and buffers of a half type in float32."""
    held = (*network.parameters(), *network.buffers()) if isinstance(network, nn.Module) else ()
    halves = [(x, x.data) for x in held if x.dtype in (torch.bfloat16, torch.float16)]
    try:
        for x, half in halves:
            x.data = half.float()
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for x, half in halves:
            x.data = half


METHODS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "dual": by_dual_numbers,
    "dual_checkpoint": by_dual_numbers,  # inside checkpointed_blocks
    "func": by_forward_mode,
    "two_pass": by_two_passes,
    "finite_difference": by_finite_difference,
}


def evaluate(method: str, f: Function, point: Point) -> tuple[Tensor, Tensor]:
    """Take value and derivative by the method of a name."""
    recompute = method == "dual_checkpoint"
    with checkpointed_blocks(f.network) if recompute else nullcontext():
        return METHODS[method](f, point)
