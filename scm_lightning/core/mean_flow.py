# SPDX-License-Identifier: Apache-2.0
r"""MeanFlow on the TrigFlow path: a flow map that leads from any time to any earlier one.

    sigma_data F(x_t / sigma_data, t, s) = 1 / (t - s) int_s^t dx/dt         average velocity
    F   = dx_t/dt / sigma_data - (t - s) dF/dt                               its identity
    x_s = x_t - (t - s) sigma_data F                                         one step

dF/dt is the total derivative along the ODE at fixed s, so it comes from the same tangent engine as
the consistency model's, with t - s in the place of cos(t) sin(t). At s = t it is velocity matching.
Source: Geng et al., arXiv 2505.13447, Section 4, there on the linear path; the identity holds on
any path.
Axes: B batch, ... data axes. Times in radians.
"""

from torch import Tensor

from scm_lightning.core.trigflow import at_least_float32, expand_time, widen


def mean_flow_target(duration_dF_dt: Tensor, dx_dt: Tensor, *, sigma_data: float) -> Tensor:
    """What F should be, given its own derivative.

    Args:
        duration_dF_dt: t - s times the total derivative of F along the ODE. (B, ...).
        dx_dt: ODE velocity at t. (B, ...), data units per radian.
        sigma_data: standard deviation of the data, in data units.

    Returns:
        dx_dt / sigma_data - (t - s) dF/dt, in float64 where the device has it. (B, ...), unit
            variance.

    Source: arXiv 2505.13447, Eq. 10.
    """
    return widen(dx_dt) / sigma_data - widen(duration_dF_dt)


def mean_flow_loss(F: Tensor, target: Tensor, *, p: float = 1.0, c: float = 1e-3) -> Tensor:
    """Squared distance with MeanFlow's adaptive weight, 1 / (distance + c)^p.

    Args:
        F: network output with its gradient. (B, ...), unit variance.
        target: target without gradient. (B, ...), unit variance.
        p: power of the weight: 0 for the plain squared distance.
        c: keeps small distances small.

    Returns:
        Loss of every sample. (B,).

    Source: arXiv 2505.13447, Section 4.3; p = 1 and c = 1e-3 there.
    """
    squared = (at_least_float32(F) - target).square().flatten(1).mean(1)
    return squared / (squared.detach() + c) ** p


def flow_step(F: Tensor, x_t: Tensor, t: Tensor, t_end: Tensor, *, sigma_data: float) -> Tensor:
    """Follow the average velocity: x_s = x_t - (t - s) sigma_data F.

    Args:
        F: network output at (x_t / sigma_data, t, s). (B, ...), unit variance.
        x_t: state at t. (B, ...), data units.
        t: times. (B,), radians.
        t_end: times s to go to. (B,), radians.
        sigma_data: standard deviation of the data, in data units.

    Returns:
        State at s. (B, ...), data units.
    """
    return x_t - expand_time(t - t_end, x_t) * sigma_data * at_least_float32(F)
