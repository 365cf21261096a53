# SPDX-License-Identifier: Apache-2.0
r"""TrigFlow: the path between data and noise, and what the network means on it.

    x_t             = cos(t) x0 + sin(t) z,    z ~ N(0, sigma_data^2 I),    t in [0, pi/2]
    dx_t/dt         = cos(t) z - sin(t) x0                       for one pair (x0, z)
    dx_t/dt         = sigma_data F(x_t / sigma_data, t)          along the probability-flow ODE
    f(x_t, t)       = cos(t) x_t - sin(t) sigma_data F           consistency function, denoiser
    z_hat(x_t, t)   = sin(t) x_t + cos(t) sigma_data F           noise predictor

Source: Lu and Song, arXiv 2410.11081, Section 3 and Appendix B.
Axes: B batch, ... data axes. Times are flat, (B,), in radians; only `expand_time` broadcasts them.
The variance of x_t is sigma_data^2 at every t. z has standard deviation sigma_data, not 1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.core.noise import Generators, standard_normal

DEVICES_WITHOUT_FLOAT64 = {"mps"}
"""Types of device that refuse to make a tensor of it: Apple's."""


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or in its own type if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def widest_float(device: torch.device | str) -> torch.dtype:
    """Float64, or float32 on a device that has no wider type."""
    has_none = torch.device(device).type in DEVICES_WITHOUT_FLOAT64
    return torch.float32 if has_none else torch.float64


def widen(x: Tensor) -> Tensor:
    """Return `x` in the widest type of its device, for differences of nearly equal numbers."""
    return x.to(widest_float(x.device))


def expand_time(t: Tensor, x: Tensor) -> Tensor:
    """Give `t` as many axes as `x`, so that both broadcast sample by sample.

    Args:
        t: one value per sample. (B,).
        x: any batch. (B, ...).

    Returns:
        `t` with trailing axes of length 1. (B, 1, ...).

    Raises:
        ValueError: if `t` is not (B,).
    """
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"need one time per sample: x has shape {tuple(x.shape)}, so t must have shape "
            f"({x.shape[0] if x.ndim else 1},), got {tuple(t.shape)}; pass times flat, they are "
            "expanded here"
        )
    return t.reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class TrigFlow:
    """The path x_t = cos(t) x0 + sin(t) z, and the only owner of `sigma_data`.

    Args:
        sigma_data: standard deviation of the data, in data units.

    Raises:
        ValueError: if `sigma_data` is not a positive number.

    Source: arXiv 2410.11081, Section 3.1.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma_data) and self.sigma_data > 0):
            raise ValueError(
                f"sigma_data must be a positive number, got {self.sigma_data}; pass the standard "
                "deviation of the data"
            )

    def add_noise(
        self, x0: Tensor, t: Tensor, generator: Generators = None
    ) -> tuple[Tensor, Tensor]:
        """Draw z and mix it into the data.

        Args:
            x0: data. (B, ...), data units.
            t: times in [0, pi/2]. (B,), radians.
            generator: source of the noise; see `standard_normal`.

        Returns:
            x_t and z. (B, ...) each, data units; in float32 or wider.
        """
        x0 = at_least_float32(x0)
        noise = standard_normal(x0.shape, generator, dtype=x0.dtype, device=x0.device)
        z = self.sigma_data * noise
        t = expand_time(t, x0)
        return t.cos() * x0 + t.sin() * z, z

    def velocity(self, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Velocity of one pair: cos(t) z - sin(t) x0.

        Args:
            x0: data. (B, ...), data units.
            z: noise with standard deviation `sigma_data`. (B, ...), data units.
            t: times. (B,), radians.

        Returns:
            dx_t/dt. (B, ...), data units per radian.
        """
        t = expand_time(t, x0)
        return t.cos() * z - t.sin() * at_least_float32(x0)

    def consistency(self, F: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Jump to t = 0: f = cos(t) x_t - sin(t) sigma_data F.

        Args:
            F: network output at (x_t / sigma_data, t). (B, ...), unit variance.
            x_t: noisy data. (B, ...), data units.
            t: times. (B,), radians.

        Returns:
            The consistency function; for a diffusion network the denoiser. (B, ...), data units.
        """
        return self.jump(F, x_t, t, torch.zeros_like(t))

    def jump(self, F: Tensor, x_t: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
        """Jump to an earlier time s: cos(t - s) x_t - sin(t - s) sigma_data F, a DDIM step.

        Args:
            F: network output at (x_t / sigma_data, t). (B, ...), unit variance.
            x_t: noisy data. (B, ...), data units.
            t: times. (B,), radians.
            t_end: times s to jump to. (B,), radians.

        Returns:
            State at s. (B, ...), data units.
        """
        angle = expand_time(t - t_end, x_t)
        return angle.cos() * x_t - angle.sin() * self.sigma_data * F

    def noise(self, F: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Jump to t = pi/2: z_hat = sin(t) x_t + cos(t) sigma_data F.

        Args:
            F: network output at (x_t / sigma_data, t). (B, ...), unit variance.
            x_t: noisy data. (B, ...), data units.
            t: times. (B,), radians.

        Returns:
            The predicted noise, with standard deviation `sigma_data`. (B, ...), data units.
        """
        t = expand_time(t, x_t)
        return t.sin() * x_t + t.cos() * self.sigma_data * F

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        """Angle of EDM's noise level: t = atan(sigma / sigma_data), in radians."""
        return torch.atan(sigma / self.sigma_data)

    def sigma_from_t(self, t: Tensor) -> Tensor:
        """EDM's noise level of an angle: sigma = sigma_data tan(t), in data units."""
        return self.sigma_data * torch.tan(t)

    def t_max(self, sigma_max: float = 80.0) -> float:
        """Angle where sampling starts, atan(sigma_max / sigma_data), in radians.

        Source: arXiv 2410.11081, Section 4; sigma_max = 80 is EDM's.
        """
        return math.atan(sigma_max / self.sigma_data)
