# SPDX-License-Identifier: Apache-2.0
r"""The derivative by a central difference along the path, which is a rotation.

    u(t + h) = cos(h) u + sin(h) du/dt

exactly for a pair (x0, z), to second order along a teacher's ODE. Rounding adds eps / h and the
step h^2 w^2 / 6, with w the highest frequency in t: 1 for networks that take t, 1000 for those that
take 1000 t. A step of 1e-4 serves both; in float64 too, since many networks embed their time in
float32.

Source: the rotation, arXiv 2510.08431 (rCM); central differences, FastGen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scm_lightning.autodiff.methods.base import Point, TangentMethod, same_random_numbers
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
        with torch.no_grad(), _full_precision(f.network, u.device.type):
            with same_random_numbers(u):
                after = f(along + across, t + step)
            with same_random_numbers(u):
                before = f(along - across, t - step)
            scaled_dF_dt = expand_time(scale / (2 * self.h), after) * (after - before)
        return f(point.u, point.t), scaled_dF_dt


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
