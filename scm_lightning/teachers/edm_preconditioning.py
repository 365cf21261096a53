# SPDX-License-Identifier: Apache-2.0
r"""Inputs of the networks of EDM's files, and their outputs as F.

    sigma = sigma_data tan t,    x = x0 + sigma eps = sigma_data u / cos t
    EDM     u,                       log(sigma) / 4,              F = -output
    VP      x / sqrt(1 + sigma^2),   (M - 1) time(sigma),         eps = output
    VE      x,                       log(sigma / 2),              eps = -output
    iDDPM   x / sqrt(1 + sigma^2),   M - 1 - (nearest index),     eps = the output's first half

and F = (eps - sin t u) / cos t. M is the number of steps of the discrete training, 1000.
Source: Karras et al., arXiv 2206.00364, Table 1 and Appendix C; NVlabs/edm, training/networks.py.
Axes: B batch, C channels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from scm_lightning.core import TrigFlow, VPProcess, expand_time
from scm_lightning.core.processes import F_from_eps


@dataclass(frozen=True, kw_only=True)
class Preconditioning(ABC):
    """Calls of a network and its output, seen from TrigFlow.

    Attributes:
        noise_range: smallest and largest sigma of its training. Data units.
        sigma_data: standard deviation of the data that it is for; None for any. Data units.
        predicts_noise: whether the output is a noise, whose error grows on the way to F.
    """

    noise_range: tuple[float, float]
    sigma_data: float | None = None
    predicts_noise: bool = True

    @abstractmethod
    def call(self, u: Tensor, t: Tensor, path: TrigFlow) -> tuple[Tensor, Tensor]:
        """Input x and c_noise of the network. (B, C, H, W) and (B,)."""

    @abstractmethod
    def F(self, output: Tensor, u: Tensor, t: Tensor) -> Tensor:
        """TrigFlow's F from the network's output. (B, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class EDM(Preconditioning):
    """EDM's own, of all its published networks but those named baseline."""

    predicts_noise: bool = False

    def call(self, u: Tensor, t: Tensor, path: TrigFlow) -> tuple[Tensor, Tensor]:
        """See `Preconditioning`."""
        return u, path.sigma_from_t(t).log() / 4

    def F(self, output: Tensor, u: Tensor, t: Tensor) -> Tensor:
        """See `Preconditioning`."""
        return -output


@dataclass(frozen=True, kw_only=True)
class VP(Preconditioning):
    """Variance-preserving baseline.

    Attributes:
        beta_min: beta at time 0.
        beta_max: beta at time 1.
        num_steps: M.
    """

    beta_min: float
    beta_max: float
    num_steps: int

    def call(self, u: Tensor, t: Tensor, path: TrigFlow) -> tuple[Tensor, Tensor]:
        """See `Preconditioning`."""
        process = VPProcess(path, self.beta_min, self.beta_max)
        return _of_unit_noise(u, t, path), (self.num_steps - 1) * process.time_from_t(t)

    def F(self, output: Tensor, u: Tensor, t: Tensor) -> Tensor:
        """See `Preconditioning`."""
        return F_from_eps(output, u, t)


@dataclass(frozen=True, kw_only=True)
class VE(Preconditioning):
    """Variance-exploding baseline."""

    def call(self, u: Tensor, t: Tensor, path: TrigFlow) -> tuple[Tensor, Tensor]:
        """See `Preconditioning`."""
        x = path.sigma_data * u / expand_time(t.cos(), u)
        return x, (path.sigma_from_t(t) / 2).log()

    def F(self, output: Tensor, u: Tensor, t: Tensor) -> Tensor:
        """See `Preconditioning`."""
        return F_from_eps(-output, u, t)


@dataclass(frozen=True, kw_only=True)
class IDDPM(Preconditioning):
    """Baseline of the improved DDPM, on a table of noises.

    Attributes:
        sigmas: its table, the largest first and 0 last. (M + 1,).
    """

    sigmas: Tensor

    def call(self, u: Tensor, t: Tensor, path: TrigFlow) -> tuple[Tensor, Tensor]:
        """See `Preconditioning`."""
        sigmas = self.sigmas.to(t)
        index = (path.sigma_from_t(t)[:, None] - sigmas).abs().argmin(dim=1)
        return _of_unit_noise(u, t, path), (len(sigmas) - 2 - index).to(t.dtype)

    def F(self, output: Tensor, u: Tensor, t: Tensor) -> Tensor:
        """See `Preconditioning`. The second half of the output is a variance, not needed."""
        return F_from_eps(output[:, : u.shape[1]], u, t)


def _of_unit_noise(u: Tensor, t: Tensor, path: TrigFlow) -> Tensor:
    """x / sqrt(1 + sigma^2), which has the data's variance at no noise and 1 at much."""
    sigma = path.sigma_from_t(t)
    return u * expand_time(path.sigma_data / (t.cos() * (1 + sigma.square()).sqrt()), u)
