# SPDX-License-Identifier: Apache-2.0
r"""Other diffusion processes, converted to TrigFlow exactly.

A process x' = alpha x0 + sigma eps, eps ~ N(0, I), is TrigFlow in other coordinates:

    t = atan(sigma / (sigma_data alpha)),    x' = scale u,    u = x_t / sigma_data,
    scale = sqrt(alpha^2 sigma_data^2 + sigma^2)

and whatever mix p = b x0 + c eps of data and noise its network predicts becomes F:

    F = (p - (b sigma_data cos t + c sin t) u) / (c cos t - b sigma_data sin t)

    prediction         b                     c         divided by
    epsilon            0                     1         cos t
    sample             1                     0         -sigma_data sin t
    v_prediction       -sigma                alpha     sigma_data / scale
    flow_prediction    -1                    1         cos t + sigma_data sin t
    edm                sin t / sigma_data    -cos t    -1, so that F = -F_EDM

Only the first two divide by something small, at one end each: an error of the network grows there.
The third is for alpha^2 + sigma^2 = 1.
Source: arXiv 2410.11081, Appendix B.2; rectified flow also arXiv 2503.09641, Proposition 3.1; v:
arXiv 2202.00512.
Axes: B batch, ... data axes. A process's own time is (B,), like t.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from scm_lightning.core.trigflow import TrigFlow, expand_time

Prediction = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "edm"]
"""Mix of data and noise that a network predicts, by the name that diffusers has for it."""


@dataclass(frozen=True)
class Process(ABC):
    """A diffusion process x' = alpha(time) x0 + sigma(time) eps, seen from TrigFlow.

    Args:
        path: owner of `sigma_data`, the standard deviation of the process's data.
        predicts: the mix that the process's network predicts.
    """

    path: TrigFlow
    predicts: Prediction = field(default="epsilon", kw_only=True)

    @abstractmethod
    def time_from_t(self, t: Tensor) -> Tensor:
        """The process's own time of the angle `t`. (B,) to (B,)."""

    @abstractmethod
    def alpha(self, time: Tensor) -> Tensor:
        """Factor of the data at the process's own time. (B,)."""

    @abstractmethod
    def sigma(self, time: Tensor) -> Tensor:
        """Factor of the unit noise at the process's own time. (B,)."""

    def F_from_prediction(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """TrigFlow's F from what the process's network predicts.

        Args:
            prediction: the network's output at (x, time_from_t(t)). (B, ...).
            x: the process's own noisy data, `x_from_trigflow`. (B, ...).
            t: angles. (B,), radians.

        Returns:
            F at (x_t / sigma_data, t). (B, ...), unit variance.
        """
        known, divisor = self.parts(t)
        u = x / expand_time(self.scale_from_t(t), x)
        return (prediction - expand_time(known, x) * u) / expand_time(divisor, x)

    def parts(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of u and of F in what is predicted. (B,) each.

        Args:
            t: angles. (B,), radians.
        """
        of_data, of_noise = self._mix(t)
        known = of_data * self.path.sigma_data * t.cos() + of_noise * t.sin()
        return known, self._divisor(t)

    def amplification(self, t: Tensor) -> Tensor:
        """Factor from an error of the network to that of F, both of unit variance. (B,).

        Of a predicted sample, its error is counted in units of `sigma_data`.
        """
        unit = self.path.sigma_data if self.predicts == "sample" else 1.0
        return unit / self._divisor(t).abs()

    def _mix(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of x0 and eps in what is predicted. (B,) each."""
        none, all_ = torch.zeros_like(t), torch.ones_like(t)
        if self.predicts == "epsilon":
            return none, all_
        if self.predicts == "sample":
            return all_, none
        if self.predicts == "flow_prediction":
            return -all_, all_
        if self.predicts == "edm":
            return t.sin() / self.path.sigma_data, -t.cos()
        scale = self.scale_from_t(t)
        return -scale * t.sin(), scale * t.cos() / self.path.sigma_data

    def _divisor(self, t: Tensor) -> Tensor:
        """Factor of F in what is predicted. (B,)."""
        of_data, of_noise = self._mix(t)
        return of_noise * t.cos() - of_data * self.path.sigma_data * t.sin()

    def t_from_time(self, time: Tensor) -> Tensor:
        """Angle of the process's own time, in radians. (B,) to (B,)."""
        return torch.atan2(self.sigma(time), self.path.sigma_data * self.alpha(time))

    def scale(self, time: Tensor) -> Tensor:
        """Standard deviation of the process's noisy data at its own time. (B,)."""
        return torch.hypot(self.alpha(time) * self.path.sigma_data, self.sigma(time))

    def scale_from_t(self, t: Tensor) -> Tensor:
        """Standard deviation of the process's noisy data at the angle `t`. (B,)."""
        return self.scale(self.time_from_t(t))

    def x_from_trigflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The process's own noisy data for TrigFlow's. (B, ...), units of the process."""
        return expand_time(self.scale_from_t(t), x_t) * x_t / self.path.sigma_data

    def x_to_trigflow(self, x: Tensor, time: Tensor) -> Tensor:
        """TrigFlow's x_t for the process's noisy data. (B, ...), data units."""
        return self.path.sigma_data * x / expand_time(self.scale(time), x)


@dataclass(frozen=True)
class EDMProcess(Process):
    """EDM and EDM2: x' = x0 + sigma eps; time is sigma; the network body predicts F_EDM.

    The body gets x_t / sigma_data, which is EDM's c_in x'; `x_from_trigflow` gives x' itself.
    A denoiser D(x', sigma) predicts the sample.
    """

    predicts: Prediction = field(default="edm", kw_only=True)

    def time_from_t(self, t: Tensor) -> Tensor:
        """See `Process`."""
        return self.path.sigma_from_t(t)

    def alpha(self, time: Tensor) -> Tensor:
        """See `Process`."""
        return torch.ones_like(time)

    def sigma(self, time: Tensor) -> Tensor:
        """See `Process`."""
        return time

    def scale_from_t(self, t: Tensor) -> Tensor:
        """See `Process`."""
        return self.path.sigma_data / t.cos()


@dataclass(frozen=True)
class RectifiedFlowProcess(Process):
    """Rectified flow: x' = (1 - s) x0 + s eps; time is s in [0, 1]; predicts v = eps - x0."""

    predicts: Prediction = field(default="flow_prediction", kw_only=True)

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
    predicts: Prediction = field(default="v_prediction", kw_only=True)

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
