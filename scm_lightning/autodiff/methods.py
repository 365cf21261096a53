# SPDX-License-Identifier: Apache-2.0
r"""Ways to take the derivative of F along the ODE, all of one form.

A method gets a function f(u, t) and a direction (tu, tt), and returns f(u, t) with its reverse
graph and the derivative along the direction without one. Value and derivative see the same dropout
mask, that of an ordinary forward.

Relative to `two_pass`, a whole training step by `dual` takes about two thirds of the time and no
more memory (tests/benchmarks/README.md).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from scm_lightning.autodiff.dual import Dual, is_dual
from scm_lightning.autodiff.forward_mode import jvp
from scm_lightning.core import expand_time

Function = Callable[[Tensor, Tensor], Tensor]


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


def same_random_numbers(x: Tensor) -> AbstractContextManager[None]:
    """Context that puts the random state back, so that another pass drops the same activations."""
    devices = [x.device] if x.device.type == "cuda" else []
    forked: AbstractContextManager[None] = torch.random.fork_rng(devices)
    return forked


def by_dual_numbers(f: Function, point: Point) -> tuple[Tensor, Tensor]:
    """One pass of dual numbers.

    Raises:
        ValueError: if the network returns something that is no dual number.
    """
    tu, tt = point.tangents()
    out = f(Dual(point.u, tu), Dual(point.t, tt))  # type: ignore[arg-type]
    if not is_dual(out):
        raise ValueError(
            f"the network lost the tangent: it must return a tensor made from u and t, got "
            f"{type(out).__name__}; use the tangent method finite_difference"
        )
    return out.primal, out.tangent  # type: ignore[attr-defined]


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


def by_finite_difference(f: Function, point: Point, h: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Central difference along the path, which is a rotation: for networks that are opaque.

        u(t + h) = cos(h) u + sin(h) du/dt

    exactly for a pair (x0, z), to second order along a teacher's ODE. At float32 the error is about
    1e-3 of the derivative; the differences are taken in the type of t.

    Source: the rotation, arXiv 2510.08431 (rCM); central differences, FastGen.
    """
    step = torch.full_like(point.t, h)
    along = expand_time(step.cos(), point.u) * point.u
    across = expand_time(step.sin(), point.u) * point.du_dt
    with torch.no_grad():
        with same_random_numbers(point.u):
            after = f(along + across, point.t + step)
        with same_random_numbers(point.u):
            before = f(along - across, point.t - step)
        derivative = expand_time(point.scale / (2 * h), after) * (after - before)
    return f(point.u, point.t), derivative


METHODS: dict[str, Callable[[Function, Point], tuple[Tensor, Tensor]]] = {
    "dual": by_dual_numbers,
    "dual_checkpoint": by_dual_numbers,  # inside checkpointed_blocks
    "func": by_forward_mode,
    "two_pass": by_two_passes,
    "finite_difference": by_finite_difference,
}
