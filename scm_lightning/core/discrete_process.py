# SPDX-License-Identifier: Apache-2.0
"""DDPM's process, by a table of its steps. Axes: B batch."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scm_lightning.core.processes import Process


@dataclass(frozen=True)
class DiscreteProcess(Process):
    """DDPM: x' = alpha x0 + sigma eps at the numbers 0, 1, ... of steps, and between them.

    alpha = sqrt(alphas_bar[n]) and alpha^2 + sigma^2 = 1. Between steps ln(sigma / alpha) is
    interpolated linearly; before a last step that is all noise, alpha / sigma is. Times beyond the
    first and the last step are theirs.

    Args:
        path: owner of `sigma_data`.
        alphas_bar: alpha^2 of every step, descending; 0 at a last step that is all noise.

    Raises:
        ValueError: if they are no such table.

    Source: Ho et al., arXiv 2006.11239; zero terminal SNR: arXiv 2305.08891.
    """

    alphas_bar: tuple[float, ...]

    def __post_init__(self) -> None:
        table = self.alphas_bar
        falls = all(before > after for before, after in itertools.pairwise(table))
        if len(table) < 2 or not (falls and table[0] < 1 and table[-1] >= 0):
            raise ValueError(
                "alphas_bar must be two or more numbers that fall from below 1 to 0 at the least, "
                f"got {len(table)} from {max(table, default=0):g} to {min(table, default=0):g}; "
                "take them from the scheduler that the model was trained with"
            )

    @cached_property
    def log_ratios(self) -> list[float]:
        """ln(sigma / alpha) of the steps; of one that is all noise, that of the step before."""
        found = [0.5 * math.log((1 - kept) / kept) for kept in self.alphas_bar if kept > 0]
        return found + found[-1:] * (len(self.alphas_bar) - len(found))

    @property
    def ends_in_noise(self) -> bool:
        """Tell whether the last step holds nothing of the data."""
        return self.alphas_bar[-1] == 0

    def time_from_t(self, t: Tensor) -> Tensor:
        """See `Process`."""
        table = torch.tensor(self.log_ratios, dtype=t.dtype, device=t.device)
        most = math.inf if self.ends_in_noise else self.log_ratios[-1]
        wanted = (self.path.sigma_data * t.tan()).abs().log().clamp(self.log_ratios[0], most)
        low = torch.searchsorted(table, wanted.detach(), right=True).clamp(1, len(table) - 1) - 1
        if self.ends_in_noise:
            low = low.where(wanted.detach() < table[-1], len(table) - 2)
        above = wanted - table[low]
        share = above / (table[low + 1] - table[low]).where(self._is_whole(low), 1.0)
        return low + share.where(self._is_whole(low), -torch.expm1(-above))

    def alpha(self, time: Tensor) -> Tensor:
        """See `Process`."""
        return torch.sigmoid(-2 * self._log_ratio(time)).sqrt()

    def sigma(self, time: Tensor) -> Tensor:
        """See `Process`."""
        return torch.sigmoid(2 * self._log_ratio(time)).sqrt()

    def scale_from_t(self, t: Tensor) -> Tensor:
        """See `Process`. Since alpha^2 + sigma^2 = 1 it needs no table."""
        return torch.rsqrt((t.cos() / self.path.sigma_data) ** 2 + t.sin() ** 2)

    def _log_ratio(self, time: Tensor) -> Tensor:
        """ln(sigma / alpha) of a number of a step. (B,)."""
        table = torch.tensor(self.log_ratios, dtype=time.dtype, device=time.device)
        low = time.detach().floor().long().clamp(0, len(table) - 2)
        share = (time - low).clamp(0, 1)
        rise = (share * (table[low + 1] - table[low])).where(
            self._is_whole(low), -torch.log1p(-share)
        )
        return table[low] + rise

    def _is_whole(self, low: Tensor) -> Tensor:
        """Tell behind which steps there is another with some of the data. (B,) bool."""
        return low < len(self.alphas_bar) - (2 if self.ends_in_noise else 1)


def linear_alphas_bar(
    beta_start: float = 1e-4, beta_end: float = 2e-2, root: bool = False, num: int = 1000
) -> tuple[float, ...]:
    """Table of `DiscreteProcess` for evenly spaced variances.

    Args:
        beta_start: variance of the first step.
        beta_end: variance of the last.
        root: whether the roots of the variances are evenly spaced ("scaled_linear"), not the
            variances ("linear").
        num: number of steps.

    Source: Ho et al., arXiv 2006.11239; Rombach et al., arXiv 2112.10752.
    """
    power = 0.5 if root else 1.0
    ends = beta_start**power, beta_end**power
    betas = torch.linspace(*ends, num, dtype=torch.float64, device="cpu") ** (1 / power)
    return tuple((1 - betas).cumprod(0).tolist())
