# SPDX-License-Identifier: Apache-2.0
r"""Other diffusion processes, converted to TrigFlow exactly.

A process x' = alpha x0 + sigma eps, eps ~ N(0, I), is TrigFlow in other coordinates:

    t = atan(sigma / (sigma_data alpha)),    x' = scale u,    u = x_t / sigma_data,
    scale = sqrt(alpha^2 sigma_data^2 + sigma^2)

and whatever its network predicts becomes F by a formula that divides by nothing small:

    EDM, EDM2         F = -F_EDM                                               (network body)
    rectified flow    sigma_data F = (((1-s) sigma_data^2 - s) x' + scale^2 v) / scale
    VP, v-prediction  x0_hat = alpha x' - sigma v,  eps_hat = sigma x' + alpha v,
                      F = cos(t) eps_hat - sin(t) x0_hat / sigma_data

Source: arXiv 2410.11081, Appendix B.2; rectified flow also arXiv 2503.09641, Proposition 3.1.
Axes: B batch, ... data axes. A process's own time is (B,), like t.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.core.trigflow import TrigFlow, expand_time


@dataclass(frozen=True)
class Process(ABC):
    """A diffusion process x' = alpha(time) x0 + sigma(time) eps, seen from TrigFlow.

    Args:
        path: owner of `sigma_data`, the standard deviation of the process's data.
    """

    path: TrigFlow

    @abstractmethod
    def time_from_t(self, t: Tensor) -> Tensor:
        """The process's own time of the angle `t`. (B,) to (B,)."""

    @abstractmethod
    def alpha(self, time: Tensor) -> Tensor:
        """Factor of the data at the process's own time. (B,)."""

    @abstractmethod
    def sigma(self, time: Tensor) -> Tensor:
        """Factor of the unit noise at the process's own time. (B,)."""

    @abstractmethod
    def F_from_prediction(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """TrigFlow's F from what the process's network predicts.

        Args:
            prediction: the network's output at (x, time_from_t(t)). (B, ...).
            x: the process's own noisy data, `x_from_trigflow`. (B, ...).
            t: angles. (B,), radians.

        Returns:
            F at (x_t / sigma_data, t). (B, ...), unit variance.
        """

    def t_from_time(self, time: Tensor) -> Tensor:
        """Angle of the process's own time, in radians. (B,) to (B,)."""
        return torch.atan2(self.sigma(time), self.path.sigma_data * self.alpha(time))

    def scale(self, time: Tensor) -> Tensor:
        """Standard deviation of the process's noisy data at its own time. (B,)."""
        return torch.hypot(self.alpha(time) * self.path.sigma_data, self.sigma(time))

    def x_from_trigflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The process's own noisy data for TrigFlow's. (B, ...), units of the process."""
        return expand_time(self.scale(self.time_from_t(t)), x_t) * x_t / self.path.sigma_data

    def x_to_trigflow(self, x: Tensor, time: Tensor) -> Tensor:
        """TrigFlow's x_t for the process's noisy data. (B, ...), data units."""
        return self.path.sigma_data * x / expand_time(self.scale(time), x)


@dataclass(frozen=True)
class EDMProcess(Process):
    """EDM and EDM2: x' = x0 + sigma eps; time is sigma; the network body predicts F_EDM.

    The body gets x_t / sigma_data, which is EDM's c_in x'; `x_from_trigflow` gives x' itself.
    """

    def time_from_t(self, t: Tensor) -> Tensor:
        """See `Process`."""
        return self.path.sigma_from_t(t)

    def alpha(self, time: Tensor) -> Tensor:
        """See `Process`."""
        return torch.ones_like(time)

    def sigma(self, time: Tensor) -> Tensor:
        """See `Process`."""
        return time

    def F_from_prediction(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """See `Process`."""
        return -prediction


@dataclass(frozen=True)
class RectifiedFlowProcess(Process):
    """Rectified flow: x' = (1 - s) x0 + s eps; time is s in [0, 1]; predicts v = eps - x0."""

    def time_from_t(self, t: Tensor) -> Tensor:
        """See `Process`."""
        noise = self.path.sigma_data * t.sin()
        return noise / (t.cos() + noise)

    def alpha(self, time: Tensor) -> Tensor:
        """See `Process`."""
        return 1.0 - time

    def sigma(self, time: Tensor) -> Tensor:
        """See `Process`."""
        return time

    def F_from_prediction(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """See `Process`."""
        time = self.time_from_t(t)
        s, scale = expand_time(time, x), expand_time(self.scale(time), x)
        variance = self.path.sigma_data**2
        mixed = ((1.0 - s) * variance - s) * x + scale**2 * prediction
        return mixed / (scale * self.path.sigma_data)


@dataclass(frozen=True)
class VPProcess(Process):
    """Variance-preserving SDE with a linear beta: alpha^2 + sigma^2 = 1; v = alpha eps - sigma x0.

    Args:
        path: owner of `sigma_data`.
        beta_min: beta at time 0.
        beta_max: beta at time 1.

    Source: Song et al., arXiv 2011.13456, Appendix C, with 0.1 and 20; v: arXiv 2202.00512.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _minus_log_alpha_squared(self, time: Tensor) -> Tensor:
        return 0.5 * (self.beta_max - self.beta_min) * time**2 + self.beta_min * time

    def time_from_t(self, t: Tensor) -> Tensor:
        """See `Process`. Solves the quadratic in the form that keeps its digits near 0."""
        q = torch.log1p(self.path.sigma_from_t(t) ** 2)
        slope = self.beta_max - self.beta_min
        return 2.0 * q / (self.beta_min + torch.sqrt(self.beta_min**2 + 2.0 * slope * q))

    def alpha(self, time: Tensor) -> Tensor:
        """See `Process`."""
        return torch.exp(-0.5 * self._minus_log_alpha_squared(time))

    def sigma(self, time: Tensor) -> Tensor:
        """See `Process`."""
        return torch.sqrt(-torch.expm1(-self._minus_log_alpha_squared(time)))

    def F_from_prediction(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """See `Process`."""
        time = self.time_from_t(t)
        alpha, sigma = expand_time(self.alpha(time), x), expand_time(self.sigma(time), x)
        x0_hat = alpha * x - sigma * prediction
        eps_hat = sigma * x + alpha * prediction
        angle = expand_time(t, x)
        return angle.cos() * eps_hat - angle.sin() * x0_hat / self.path.sigma_data


def F_from_eps(eps_hat: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """TrigFlow's F from a predicted unit noise: F = (eps_hat - sin(t) u) / cos(t).

    Args:
        eps_hat: predicted noise. (B, ...), unit variance.
        u: x_t / sigma_data. (B, ...), unit variance.
        t: angles up to t_max = 1.5645. (B,), radians.

    Returns:
        F. (B, ...), unit variance.

    Raises:
        ValueError: if a time is so near pi/2 that the noise no longer tells the data apart.

    Source: arXiv 2410.11081, Appendix B.2.
    """
    if bool((t > math.pi / 2 - 1e-3).any()):
        raise ValueError(
            f"a noise prediction gives no F at pi/2: t must be at most pi/2 - 1e-3, got "
            f"{float(t.max())}; start sampling at TrigFlow.t_max()"
        )
    t = expand_time(t, u)
    return (eps_hat - t.sin() * u) / t.cos()
