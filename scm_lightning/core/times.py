# SPDX-License-Identifier: Apache-2.0
r"""Times that a network is trained at.

    tau ~ N(P_mean, P_std^2),    t = atan(exp(tau) / sigma_data)

tau is exactly EDM's log sigma, so values of P_mean and P_std carry over from EDM. They belong to a
`sigma_data` of 0.5: with data of another scale the same values give other angles.
Source: arXiv 2410.11081, Algorithm 1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.core.trigflow import TrigFlow, widen, widest_float

MAX_TIME = 1.5707962
"""Largest float32 below pi/2, in radians; float32's own pi/2 lies above it, where tan < 0."""

MAX_STEPS = 1_000_000


@dataclass(frozen=True)
class TimeProposal:
    """Log-normal proposal over noise levels, as angles.

    Args:
        P_mean: mean of log(sigma_data tan(t)).
        P_std: standard deviation of the same.

    Raises:
        ValueError: if `P_std` is not positive, or a value is not finite.

    Source: arXiv 2410.11081, Section 4.2; the defaults are the consistency models' on CIFAR-10.
    """

    P_mean: float = -1.0
    P_std: float = 1.4

    def __post_init__(self) -> None:
        if not (math.isfinite(self.P_mean) and math.isfinite(self.P_std) and self.P_std > 0):
            raise ValueError(
                f"P_mean must be a number and P_std a positive one, got {self.P_mean} and "
                f"{self.P_std}; the paper uses -1.0 and 1.4 on CIFAR-10"
            )

    def sample(
        self,
        num: int,
        path: TrigFlow,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw `num` times.

        Args:
            num: number of samples B.
            path: owner of `sigma_data`.
            generator: source of the numbers, on `device`; None for torch's global state.
            device: device of the result.

        Returns:
            Times in (0, pi/2). (B,), radians, float32 whatever the trainer's precision.
        """
        tau = self.P_mean + self.P_std * torch.randn(
            num, generator=generator, device=device, dtype=widest_float(device)
        )
        t = path.t_from_sigma(tau.exp()).to(torch.float32)
        return t.clamp(max=MAX_TIME)

    def sample_pairs(
        self, num: int, share_of_intervals: float, path: TrigFlow, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Draw times and ends for flow maps: of two times the later and the earlier one.

        Args:
            num: number of samples B.
            share_of_intervals: probability that the two differ.
            path: owner of `sigma_data`.
            device: device of the result.

        Returns:
            t and s <= t. (B,) each, radians.
        """
        one = self.sample(num, path, device=device)
        other = self.sample(num, path, device=device)
        apart = torch.rand(num, device=device) < share_of_intervals
        t = torch.maximum(one, other)
        return t, torch.where(apart, torch.minimum(one, other), t)


def check_num_steps(num: int) -> None:
    """Refuse a number of steps, or of parts of a path, whose list of times no memory holds.

    Raises:
        ValueError: if it is above a million.
    """
    if num > MAX_STEPS:
        raise ValueError(f"a path has at most {MAX_STEPS:,} steps or parts, got {num}; take fewer")


def edm_levels(
    num: int, first: float, last: float, rho: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Noise levels of EDM's grid, evenly spaced in sigma^(1/rho).

    Args:
        num: number of levels, at least 2.
        first: first noise level. Data units.
        last: last noise level. Data units.
        rho: how closely the levels lie near 0.
        device: device of the result.

    Returns:
        The levels. (num,), data units, in float64 where the device has it.

    Source: arXiv 2206.00364, Eq. 5.
    """
    ramp = torch.linspace(0, 1, num, dtype=widest_float(device), device=device)
    start, end = first ** (1 / rho), last ** (1 / rho)
    levels: Tensor = (start + ramp * (end - start)) ** rho
    return levels


@dataclass(frozen=True)
class TimeGrid:
    """EDM's grid of noise levels as ascending angles from 0, for discrete-time training.

        sigma_i = (sigma_min^(1/rho) + i/N (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho,  t_0 = 0

    Args:
        num_intervals: intervals N of the grid, at least 1.
        sigma_min: smallest noise level that would stand at i = 0; 0 stands there instead. Data
            units.
        sigma_max: largest noise level. Data units.
        rho: how closely the levels lie near 0.

    Raises:
        ValueError: if there is no interval, or far too many.

    Source: arXiv 2410.11081, Algorithm 2; grid: arXiv 2206.00364, Eq. 5.
    """

    num_intervals: int
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if self.num_intervals < 1:
            raise ValueError(
                f"a discrete-time grid has at least 1 interval, got {self.num_intervals}; the "
                "paper's best is 1024"
            )
        check_num_steps(self.num_intervals)

    def times(self, path: TrigFlow, device: torch.device | str = "cpu") -> Tensor:
        """The grid. (N + 1,), radians, ascending; in float64 where the device has it."""
        num = self.num_intervals + 1
        times = path.t_from_sigma(edm_levels(num, self.sigma_min, self.sigma_max, self.rho, device))
        times[0] = 0.0
        return times

    def interval(self, t: Tensor, path: TrigFlow) -> tuple[Tensor, Tensor]:
        """Move times to the grid.

        Args:
            t: times. (B,), radians.
            path: owner of `sigma_data`.

        Returns:
            Lower and upper end of the interval that every time lies in. (B,) each, radians.
        """
        # Rounded as t is: a time of the grid must not fall into the interval above its own.
        times = self.times(path, t.device).to(t.dtype)
        upper = torch.searchsorted(times, t).clamp(1, self.num_intervals)
        return times[upper - 1], times[upper]


@dataclass(frozen=True)
class Segments:
    """Equal parts of [0, pi/2], for a model that jumps to the lower edge of its part.

        f(x_t, t) = cos(t - s) x_t - sin(t - s) sigma_data F,    s = the edge below t

    is the consistency function of a part, and every formula of `tangent` holds with t - s in the
    place of t. One part is the ordinary consistency model; with more, F jumps at every edge in t,
    so the network is told s too.

    Args:
        num: number of parts M.

    Raises:
        ValueError: if there is no part, or far too many.

    Source: "multistep sCD" of arXiv 2410.11081, Table 6, which gives no recipe; after multistep
        consistency models, arXiv 2403.06807. Equal angles (ours).
    """

    num: int = 1

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"a model has at least 1 segment, got {self.num}; the default is 1")
        check_num_steps(self.num)

    def lower_edge(self, t: Tensor) -> Tensor:
        """Lower edge of the part that every time lies in. (B,) radians to (B,) radians."""
        width = math.pi / 2 / self.num
        return (widen(t) / width).floor().clamp(0, self.num - 1).mul(width).to(t.dtype)

    def edges(self, t_max: float) -> tuple[float, ...]:
        """Times of a sampling run: `t_max`, then every lower edge down to 0. Radians."""
        width = math.pi / 2 / self.num
        return (t_max, *(width * part for part in reversed(range(self.num))))
