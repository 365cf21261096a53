# SPDX-License-Identifier: Apache-2.0
"""Ways to draw samples that a run compares: a name, its cost, and the function that draws."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from scm_lightning.core import TrigFlow
from scm_lightning.core.noise import Generators
from scm_lightning.sampling.consistency import check_times, sample_consistency
from scm_lightning.sampling.ode import num_evaluations, sample_ode, time_grid


class Samples(NamedTuple):
    """What a sampler drew.

    Attributes:
        x0: samples. (B, ...), data units.
        nfe: network calls that each took.
    """

    x0: Tensor
    nfe: int


class Sampler(NamedTuple):
    """One way to turn noise into samples.

    Attributes:
        nfe: network calls per sample.
        draw: (noise, labels, generators) to samples. Noise and samples (B, ...), data units;
            labels (B,) or None.
    """

    nfe: int
    draw: Callable[[Tensor, Tensor | None, Generators], Tensor]


def consistency_samplers(
    network: nn.Module, path: TrigFlow, intermediate_times: Sequence[float]
) -> dict[str, Sampler]:
    """One sampler per number of steps: `1_step`, `2_step` and so on.

    Args:
        network: the consistency model.
        path: owner of `sigma_data`.
        intermediate_times: descending angles of the second, third, ... step. Radians.

    Raises:
        ValueError: if the times leave (0, t_max) or do not descend.
    """
    times = (path.t_max(), *intermediate_times)
    check_times(times, last=1e-6)
    samplers = {}
    for num_steps in range(1, len(times) + 1):
        samplers[f"{num_steps}_step"] = _consistency_sampler(network, path, times[:num_steps])
    return samplers


def teacher_samplers(network: nn.Module, path: TrigFlow, num_steps: int) -> dict[str, Sampler]:
    """A diffusion model's samplers: `teacher` is Heun, `denoiser` its own single step.

    The denoiser is the honest baseline of a one-step model: the same network, one call.

    Args:
        network: the diffusion model.
        path: owner of `sigma_data`.
        num_steps: Heun steps N, costing 2 N - 1 network calls.
    """
    times = time_grid(num_steps, path)

    def draw(noise: Tensor, labels: Tensor | None, generator: Generators) -> Tensor:
        return sample_ode(network, noise, times, path=path, solver="heun", labels=labels)

    return {
        "teacher": Sampler(num_evaluations(times, "heun"), draw),
        "denoiser": _consistency_sampler(network, path, (path.t_max(),)),
    }


def _consistency_sampler(network: nn.Module, path: TrigFlow, times: Sequence[float]) -> Sampler:
    def draw(noise: Tensor, labels: Tensor | None, generator: Generators) -> Tensor:
        return sample_consistency(
            network, noise, times, path=path, labels=labels, generator=generator
        )

    return Sampler(len(times), draw)
