# SPDX-License-Identifier: Apache-2.0
r"""Flow maps between any two times, and the residual that all their objectives share.

    X(x_t, t, s) = a(t - s) x_t - b(t - s) sigma_data F(x_t / sigma_data, t, s)
    G            = dX/dt / sigma_data = a' u + a w - b' F - b dF/dt,  u = x_t / sigma_data
                                                                      w = dx_t/dt / sigma_data
                      a      b       G
    TrigFlow's map    cos    sin     cos (w - F) - sin (u + dF/dt)       a DDIM step
    average velocity  1      t - s   w - F - (t - s) dF/dt               MeanFlow

X is the exact map if and only if X = x_t at s = t and G = 0: moving along the ODE does not move
where it leads. dF/dt is the total derivative along the ODE at fixed s. The tangent of Algorithm 1
is sigma_data cos(t) G of TrigFlow's map at s = 0, MeanFlow's target F + G of the other.
Source: MeanFlow, arXiv 2505.13447, Section 4; the one residual: AYF, arXiv 2506.14603.
Axes: B batch, ... data axes. Times in radians.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.core.trigflow import at_least_float32, expand_time, widen

Coefficients = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class FlowMap:
    """Meaning of F: a state at t, moved to s.

    Attributes:
        coefficients: a, b, a' and b' of a duration t - s. (B, 1, ...) each.
    """

    coefficients: Coefficients

    def jump(
        self, F: Tensor, x_t: Tensor, t: Tensor, t_end: Tensor, *, sigma_data: float
    ) -> Tensor:
        """Jump to another time: X(x_t, t, s).

        Args:
            F: network output at (x_t / sigma_data, t, s). (B, ...), unit variance.
            x_t: state at t. (B, ...), data units.
            t: times. (B,), radians.
            t_end: times s to go to. (B,), radians.
            sigma_data: standard deviation of the data, in data units.

        Returns:
            State at s. (B, ...), data units.
        """
        a, b, _, _ = self.coefficients(expand_time(t - t_end, x_t))
        return a * x_t - b * sigma_data * at_least_float32(F)

    def scale(self, t: Tensor, t_end: Tensor) -> Tensor:
        """The factor b(t - s) that dF/dt carries in the residual. (B,)."""
        return self.coefficients(t - t_end)[1]

    def residual(
        self,
        F: Tensor,
        b_dF_dt: Tensor,
        x_t: Tensor,
        dx_dt: Tensor,
        duration: Tensor,
        *,
        sigma_data: float,
    ) -> Tensor:
        """The residual G.

        Args:
            F: network output at (x_t / sigma_data, t, s), detached. (B, ...), unit variance.
            b_dF_dt: b(t - s) times the total derivative of F along the ODE. (B, ...).
            x_t: noisy data. (B, ...), data units.
            dx_dt: ODE velocity at t. (B, ...), data units per radian.
            duration: t - s. (B,), radians.
            sigma_data: standard deviation of the data, in data units.

        Returns:
            G, in float64 where the device has it. (B, ...), per radian.
        """
        F, b_dF_dt, u, w = map(widen, (F, b_dF_dt, x_t / sigma_data, dx_dt / sigma_data))
        a, _, da, db = self.coefficients(expand_time(widen(duration), u))
        return da * u + a * w - db * F - b_dF_dt


def _trigonometric(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.cos(), x.sin(), -x.sin(), x.cos()


def _average(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one = torch.ones_like(x)
    return one, x, torch.zeros_like(x), one


TRIGONOMETRIC = FlowMap(_trigonometric)
"""TrigFlow's own map, a DDIM step; the consistency function is that to 0."""
AVERAGE_VELOCITY = FlowMap(_average)
"""F is the mean of dx/dt / sigma_data between s and t, as in MeanFlow."""


def adaptive_loss(F: Tensor, target: Tensor, *, p: float = 1.0, c: float = 1e-3) -> Tensor:
    """Squared distance with MeanFlow's adaptive weight, ||d||^2 / (||d||^2 + c)^p.

    Args:
        F: network output with its gradient. (B, ...), unit variance.
        target: target without gradient. (B, ...), unit variance.
        p: power of the weight: 0 for the plain squared distance.
        c: keeps small distances small; added to the sum of squares of a sample.

    Returns:
        Loss of every sample. (B,).

    Source: arXiv 2505.13447, Section 4.3; p = 1 and c = 1e-3 there.
    """
    squared = (at_least_float32(F) - target).square().flatten(1).sum(1)
    return squared / (squared.detach() + c) ** p
