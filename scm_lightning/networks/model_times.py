# SPDX-License-Identifier: Apache-2.0
"""Times of other people's models, by the same ratio of noise to data as our t.

x_t = cos t x0 + sin t sigma_data z has the ratio sigma_data tan t; a model that was trained on
another path is told the time at which its own path has that ratio.
"""

from collections.abc import Callable

from torch import Tensor

from scm_lightning.core import (
    DiscreteProcess,
    RectifiedFlowProcess,
    TrigFlow,
    linear_alphas_bar,
)

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

    Args:
        scale: the model's time at s = 1: 1 or 1000.
        from_noise: whether the model counts from the noise, 1 - s.
        sigma_data: standard deviation of the data. Data units.

    Source: Liu et al., arXiv 2209.03003; the times by equal ratio, arXiv 2503.09641, Section 3.
    """

    def __init__(
        self, scale: float = 1.0, from_noise: bool = False, sigma_data: float = 1.0
    ) -> None:
        self.scale, self.from_noise = scale, from_noise
        self.process = RectifiedFlowProcess(TrigFlow(sigma_data))

    def __call__(self, t: Tensor) -> Tensor:
        """Return the time that the model is told. (B,)."""
        return self.told(self.process.time_from_t(t))

    def told(self, s: Tensor) -> Tensor:
        """Return what the model is told for the time s. (B,)."""
        return self.scale * (1 - s if self.from_noise else s)


class DiscreteTime:
    """Number n of a step of DDPM, between whole steps as well; see `core.DiscreteProcess`.

    Args:
        beta_start: variance of the first step.
        beta_end: variance of the last.
        root: whether the roots of the variances are equally spaced ("scaled_linear") rather than
            the variances ("linear").
        num: number of steps.
        sigma_data: standard deviation of the data. Data units.
    """

    def __init__(
        self,
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        root: bool = False,
        num: int = 1000,
        sigma_data: float = 1.0,
    ) -> None:
        table = linear_alphas_bar(beta_start, beta_end, root, num)
        self.process = DiscreteProcess(TrigFlow(sigma_data), table)

    def __call__(self, t: Tensor) -> Tensor:
        """Return the number of the step. (B,), from 0 to num - 1."""
        return self.process.time_from_t(t)
