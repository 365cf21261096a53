# SPDX-License-Identifier: Apache-2.0
"""Ways of a run to draw samples: functions from noise to samples, and the options for them.

Axes: B batch, ... data axes. Times in radians.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scm_lightning.core import Bound, Conditions, Guided, TrigFlow, check_num_steps
from scm_lightning.core.noise import Generators
from scm_lightning.sampling.churn import Churn
from scm_lightning.sampling.consistency import sample_consistency
from scm_lightning.sampling.ode import Solver, check_solver, sample_ode
from scm_lightning.sampling.steps import Network, Steps
from scm_lightning.sampling.sweep import SamplerSweep
from scm_lightning.sampling.times import check_solver_steps, time_grid

Draw = Callable[[Tensor, Conditions, Generators], Tensor]
"""(noise, conditions, generators) to samples. Both (B, ...), data units."""


class Samples(NamedTuple):
    """Samples drawn, and their cost.

    Attributes:
        x0: samples. (B, ...), data units.
        nfe: network calls that each took.
    """

    x0: Tensor
    nfe: int


def _check_guidance(guidance: float | None) -> None:
    if guidance is not None and not math.isfinite(guidance):
        raise ValueError(
            f"guidance of sampling must be a finite scale, got {guidance}; 1 is the plain model"
        )


@dataclass(frozen=True)
class DiffusionSampling:
    """Options for sampling a diffusion model.

    Args:
        num_steps: steps N of the solver, at least 2; Heun's costs 2 N - 1 network calls. The
            paper's 18 on CIFAR-10 by default.
        solver: which solver; see `sample_ode`.
        churn: noise to renew before every step; None for the ODE itself.
        guidance: scale of classifier-free guidance, at twice the calls; or a scale for each of
            several conditions, by their names, in the order in which they are added, at a call for
            each and one more; None for none.

    Raises:
        ValueError: if the number of steps has no grid, the solver cannot be churned, or the scale
            is no number.
    """

    num_steps: int = 18
    solver: Solver = "heun"
    churn: Churn | None = None
    guidance: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        given = self.guidance
        for scale in given.values() if isinstance(given, Mapping) else [given]:
            _check_guidance(scale)
        check_solver_steps(self.num_steps)
        check_solver(self.solver, self.churn)

    def draws(self, network: Network, path: TrigFlow) -> dict[str, Draw]:
        """The solver as `teacher`, and the network's own single step as `denoiser`.

        The denoiser is the honest baseline of a one-step model: the same network, one call.

        Args:
            network: F(u, t, labels) of the diffusion model.
            path: owner of `sigma_data`.
        """
        times = time_grid(self.num_steps, path)

        def solve(noise: Tensor, given: Conditions, generator: Generators) -> Tensor:
            F = Guided(network, given, self._scales(noise))
            return sample_ode(
                *(F, noise, times),
                path=path,
                solver=self.solver,
                churn=self.churn,
                generator=generator,
            )

        def denoise(noise: Tensor, given: Conditions, generator: Generators) -> Tensor:
            F = Guided(network, given, self._scales(noise))
            return sample_consistency(F, noise, (path.t_max(),), path=path)

        return {"teacher": solve, "denoiser": denoise}

    def _scales(self, noise: Tensor) -> Tensor | dict[str, Tensor] | None:
        """Scales of the samples, (B,) each."""
        if isinstance(self.guidance, Mapping):
            return {name: _scales(scale, noise) for name, scale in self.guidance.items()}
        return None if self.guidance is None else _scales(self.guidance, noise)


@dataclass(frozen=True)
class FewStepSampling:
    """Options for sampling a student, and its teacher for comparison.

    Args:
        num_steps: numbers of steps to sample in; None for those of the objective: one, and one more
            for every intermediate time; as many as segments; one and two jumps of MeanFlow.
        intermediate_times: angles of the second, third, ... step with fresh noise. Radians.
        guidance: scale that a guided student is given; or one for one step, one for two, ..., of
            which the last is that of more steps too.
        teacher: how the teacher is sampled; at the student's last guidance, if it is given none.
        sweep: further ways to compare in `scm test`.

    Raises:
        ValueError: if a number of steps is out of range, or a scale is no number.
    """

    num_steps: Sequence[int] | None = None
    intermediate_times: Sequence[float] = (1.1,)
    guidance: float | Sequence[float] = 1.0
    teacher: DiffusionSampling = DiffusionSampling()
    sweep: SamplerSweep | None = None

    def __post_init__(self) -> None:
        if self.num_steps is not None and min(self.num_steps, default=0) < 1:
            raise ValueError(
                f"num_steps of sampling must be at least 1, got {list(self.num_steps)}; the paper "
                "takes 1 and 2"
            )
        check_num_steps(max(self.num_steps or [1]))
        if not self.scales:
            raise ValueError("guidance of sampling must be a scale or a list of them, got []")
        for scale in self.scales:
            _check_guidance(scale)

    @property
    def scales(self) -> Sequence[float]:
        """Guidance of one step, of two, ...; the last one of more steps too."""
        return self.guidance if isinstance(self.guidance, Sequence) else [self.guidance]


def few_step_draw(
    network: Network, steps: Steps, times: Sequence[float], path: TrigFlow, guidance: float | None
) -> Draw:
    """Make a function that samples a student at given times.

    Args:
        network: F(u, t, labels, guidance), and with t_end behind them of a flow map.
        steps: what happens between the times.
        times: descending angles. Radians.
        path: owner of `sigma_data`.
        guidance: scale that the network is given; None for a network without.
    """

    def draw(noise: Tensor, given: Conditions, generator: Generators) -> Tensor:
        scales = None if guidance is None else _scales(guidance, noise)
        F = Bound(network, given.labels, scales, named=given.named)
        return steps.sample(F, noise, times, path, generator)

    return draw


def _scales(guidance: float, noise: Tensor) -> Tensor:
    """One guidance scale per sample. (B,)."""
    return torch.full(noise.shape[:1], guidance, dtype=noise.dtype, device=noise.device)
