# SPDX-License-Identifier: Apache-2.0
r"""Which times a network is trained at.

    tau ~ N(P_mean, P_std^2),    t = atan(exp(tau) / sigma_data)

tau is exactly EDM's log sigma, so values of P_mean and P_std carry over from EDM. They belong to a
`sigma_data` of 0.5: with data of another scale the same values give other angles.
Source: arXiv 2410.11081, Algorithm 1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.core.trigflow import TrigFlow

MAX_TIME = 1.5707962
"""Largest float32 below pi/2, in radians; float32's own pi/2 lies above it, where tan < 0."""


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
            num, generator=generator, device=device, dtype=torch.float64
        )
        t = path.t_from_sigma(tau.exp()).to(torch.float32)
        return t.clamp(max=MAX_TIME)
