# SPDX-License-Identifier: Apache-2.0
"""Times of other people's models, by the same ratio of noise to data as our t.

x_t = cos t x0 + sin t sigma_data z has the ratio sigma_data tan t; a model that was trained on
another path is told the time at which its own path has that ratio.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ModelTime = Callable[[Tensor], Tensor]
"""From t in radians, (B,), to the time that a model is told, (B,)."""


def radians(t: Tensor) -> Tensor:
    """The time as it is."""
    return t


def thousandths(t: Tensor) -> Tensor:
    """The time for a model that multiplies it by 1000 itself, so that t is what it embeds."""
    return t / 1000


class FlowTime:
    """Time s of rectified flow, x_s = (1 - s) x0 + s z.

        s = sigma_data sin t / (cos t + sigma_data sin t)

    Args:
        scale: the model's time at s = 1: 1 or 1000.
        from_noise: whether the model counts from the noise, 1 - s.
        sigma_data: standard deviation of the data. Data units.

    Source: Liu et al., arXiv 2209.03003; the times by equal ratio, arXiv 2503.09641, Section 3.
    """

    def __init__(
        self, scale: float = 1.0, from_noise: bool = False, sigma_data: float = 1.0
    ) -> None:
        self.scale, self.from_noise, self.sigma_data = scale, from_noise, sigma_data

    def __call__(self, t: Tensor) -> Tensor:
        """Return the time that the model is told. (B,)."""
        data, noise = t.cos(), self.sigma_data * t.sin()
        return self.scale * (data if self.from_noise else noise) / (data + noise)


class DiscreteTime:
    """Number n of a step of DDPM, x_n = a_n x0 + s_n z, between whole steps as well.

    ln(s / a) is interpolated linearly. Times beyond the first and the last step are theirs.

    Args:
        beta_start: variance of the first step.
        beta_end: variance of the last.
        root: whether the roots of the variances are equally spaced ("scaled_linear") rather than
            the variances ("linear").
        num: number of steps.
        sigma_data: standard deviation of the data. Data units.

    Source: Ho et al., arXiv 2006.11239; Rombach et al., arXiv 2112.10752.
    """

    def __init__(
        self,
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        root: bool = False,
        num: int = 1000,
        sigma_data: float = 1.0,
    ) -> None:
        power = 0.5 if root else 1.0
        ends = beta_start**power, beta_end**power
        # On the CPU also where networks are built without memory, on the device meta.
        betas = torch.linspace(*ends, num, dtype=torch.float64, device="cpu") ** (1 / power)
        kept = (1 - betas).cumprod(0)
        self.log_ratio = (0.5 * ((1 - kept) / kept).log()).tolist()
        self.sigma_data = sigma_data

    def __call__(self, t: Tensor) -> Tensor:
        """Return the number of the step. (B,), from 0 to num - 1."""
        table = torch.tensor(self.log_ratio, dtype=t.dtype, device=t.device)
        wanted = (self.sigma_data * t.tan()).abs().log().clamp(table[0], table[-1])
        low = torch.searchsorted(table, wanted.detach(), right=True).clamp(1, len(table) - 1) - 1
        return low + (wanted - table[low]) / (table[low + 1] - table[low])
