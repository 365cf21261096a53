# SPDX-License-Identifier: Apache-2.0
r"""EDM's stochastic sampling: before a step, noise is added and the state moves back to match it.

    sigma_hat = (1 + gamma) sigma,    x_hat = x + sqrt(sigma_hat^2 - sigma^2) S_noise n       in EDM
    tan(s_hat) = (1 + gamma) tan(s)                                                        in angles
    x_hat = (cos(s_hat) x + sqrt(gamma^2 + 2 gamma) cos(s_hat) sin(s) sigma_data S_noise n) / cos(s)

EDM's state is x / cos(s). cos(s_hat) / cos(s) = 1 / sqrt(cos^2 + (1 + gamma)^2 sin^2), at s, is 1 /
(1 + gamma) at pi/2: noise is mixed with noise there.
Source: Karras et al., EDM (arXiv 2206.00364), Algorithm 2.
Axes: B batch, ... data axes.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from scm_lightning.core import TrigFlow, standard_normal
from scm_lightning.core.noise import Generators


@dataclass(frozen=True)
class Churn:
    """Noise renewed on the way: its amount, and at which levels.

    Args:
        S_churn: amount over all steps: gamma = min(S_churn / N, sqrt(2) - 1) at each of N.
        S_tmin: smallest noise level sigma at which noise is added. Data units.
        S_tmax: largest one. Data units.
        S_noise: standard deviation of what is added, as a factor; a little above 1 makes up for
            the detail that a denoiser takes away.

    Raises:
        ValueError: if a number is negative, or S_churn or S_noise not finite, or there is no noise
            level between S_tmin and S_tmax.

    Source: arXiv 2206.00364, Algorithm 2; on ImageNet 64 x 64 it has 40, 0.05, 50 and 1.003, where
        sigma_data is 0.5.
    """

    S_churn: float
    S_tmin: float = 0.0
    S_tmax: float = math.inf
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        is_finite = math.isfinite(self.S_churn) and math.isfinite(self.S_noise)
        is_positive = min(self.S_churn, self.S_noise, self.S_tmin) >= 0
        if not (is_finite and is_positive and self.S_tmin <= self.S_tmax):
            raise ValueError(
                "churn needs finite S_churn and S_noise of at least 0, and 0 <= S_tmin <= S_tmax, "
                f"got {self}; EDM uses 40, 1.003, 0.05 and 50 on ImageNet"
            )

    def stir(
        self, x: Tensor, time: float, num_steps: int, path: TrigFlow, generator: Generators
    ) -> tuple[Tensor, float]:
        """Add noise, and move back to the time that it belongs to.

        Args:
            x: state. (B, ...), data units.
            time: its time s. Radians.
            num_steps: steps N of the solver.
            path: owner of `sigma_data`.
            generator: source of the noise; see `standard_normal`.

        Returns:
            x_hat, (B, ...) in data units, and s_hat in radians; the state as it was if no noise is
            added at this time.
        """
        is_inside = self.S_tmin <= path.sigma_data * math.tan(time) <= self.S_tmax
        gamma = min(self.S_churn / num_steps, math.sqrt(2) - 1) if is_inside else 0.0
        if gamma == 0:
            return x, time
        cos, sin = math.cos(time), math.sin(time)
        scale = 1 / math.hypot(cos, (1 + gamma) * sin)
        added = scale * sin * math.sqrt(gamma * (gamma + 2)) * path.sigma_data * self.S_noise
        n = standard_normal(x.shape, generator, dtype=x.dtype, device=x.device)
        return scale * x + added * n, math.atan2((1 + gamma) * sin, cos)
