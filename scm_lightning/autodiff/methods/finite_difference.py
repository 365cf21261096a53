# SPDX-License-Identifier: Apache-2.0
r"""The derivative by a central difference along the path, which is a rotation.

    u(t + h) = cos(h) u + sin(h) du/dt

exactly for a pair (x0, z), to second order along a teacher's ODE. Rounding adds eps / h and the
step h^2 w^2 / 6, with w the highest frequency in t: 1 for networks that take t, 1000 for those that
take 1000 t. A step of 1e-4 serves both; in float64 too, since many networks embed their time in
float32.

Source: the rotation, arXiv 2510.08431 (rCM); central differences, FastGen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.autodiff.methods.base import Point, TangentMethod, same_random_numbers, widened
from scm_lightning.core import Bound, at_least_float32, expand_time


@dataclass(frozen=True)
class FiniteDifference(TangentMethod):
    """Three forwards, two of them in float32: for networks that are opaque, to about 5e-3.

    Args:
        h: the step. Radians.

    Raises:
        ValueError: if the step is not positive.
    """

    h: float = 1e-4

    def __post_init__(self) -> None:
        if not self.h > 0:
            raise ValueError(f"the step h of differences must be positive, got {self.h}; use 1e-4")

    def __call__(self, f: Bound, point: Point) -> tuple[Tensor, Tensor]:
        """F is computed as the run does; the differences in float32 or wider.

        A difference of values rounded to bfloat16 is noise.
        """
        u, t, du_dt, scale = (x.to(_wide_type(point)) for x in point)
        step = torch.full_like(t, self.h)
        along = expand_time(step.cos(), u) * u
        across = expand_time(step.sin(), u) * du_dt
        with torch.no_grad(), widened(f.network, u.device.type, torch.float32):
            with same_random_numbers(u):
                after = f(along + across, t + step)
            with same_random_numbers(u):
                before = f(along - across, t - step)
            scaled_dF_dt = expand_time(scale / (2 * self.h), after) * (after - before)
        return f(point.u, point.t), scaled_dF_dt


def _wide_type(point: Point) -> torch.dtype:
    """Widest type of u and t, at least float32: half of a step must not be lost in t."""
    return torch.promote_types(at_least_float32(point.u).dtype, point.t.dtype)
