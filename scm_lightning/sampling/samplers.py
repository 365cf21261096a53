# SPDX-License-Identifier: Apache-2.0
"""Ways to draw samples that a run compares: a name, its cost, and the function that draws."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scm_lightning.core import Bound, Guided, TrigFlow
from scm_lightning.core.noise import Generators
from scm_lightning.sampling.consistency import sample_consistency
from scm_lightning.sampling.flow_map import Step, sample_flow_map
from scm_lightning.sampling.ode import num_evaluations, sample_ode
from scm_lightning.sampling.times import check_times, time_grid

Network = Callable[..., Tensor]


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
    network: Network,
    path: TrigFlow,
    intermediate_times: Sequence[float],
    guidance: float | None = None,
) -> dict[str, Sampler]:
    """One sampler per number of steps: `1_step`, `2_step` and so on.

    Args:
        network: the consistency model.
        path: owner of `sigma_data`.
        intermediate_times: descending angles of the second, third, ... step. Radians.
        guidance: guidance scale that the network is given; None for a network without.

    Raises:
        ValueError: if the times leave (0, t_max) or do not descend.
    """
    times = (path.t_max(), *intermediate_times)
    check_times(times, last=1e-6)
    samplers = {}
    for num_steps in range(1, len(times) + 1):
        sampler = consistency_sampler(network, path, times[:num_steps], guidance)
        samplers[f"{num_steps}_step"] = sampler
    return samplers


def consistency_sampler(
    network: Network, path: TrigFlow, times: Sequence[float], guidance: float | None = None
) -> Sampler:
    """A consistency model, called once per time; see `sample_consistency`.

    Args:
        network: the consistency model; a diffusion model, for its denoiser.
        path: owner of `sigma_data`.
        times: descending angles in (0, pi/2], one per step. Radians.
        guidance: guidance scale that the network is given; None for a network without.

    Raises:
        ValueError: if the times leave (0, pi/2] or do not descend.
    """
    check_times(times, last=1e-6)

    def draw(noise: Tensor, labels: Tensor | None, generator: Generators) -> Tensor:
        F = Bound(network, labels, _scales(guidance, noise))
        return sample_consistency(F, noise, times, path=path, generator=generator)

    return Sampler(len(times), draw)


def flow_map_sampler(
    network: Network,
    path: TrigFlow,
    times: Sequence[float],
    step: Step,
    guidance: float | None = None,
) -> Sampler:
    """A network that knows where its steps end, from time to time; see `sample_flow_map`.

    Args:
        network: F(u, t, labels, guidance, t_end).
        path: owner of `sigma_data`.
        times: descending angles, ending at 0. Radians.
        step: what F means.
        guidance: guidance scale that the network is given; None for a network without.
    """

    def draw(noise: Tensor, labels: Tensor | None, generator: Generators) -> Tensor:
        F = Bound(network, labels, _scales(guidance, noise))
        return sample_flow_map(F, noise, times, step=step, path=path)

    return Sampler(len(times) - 1, draw)


def teacher_samplers(
    network: Network, path: TrigFlow, num_steps: int, guidance: float | None = None
) -> dict[str, Sampler]:
    """A diffusion model's samplers: `teacher` is Heun, `denoiser` its own single step.

    The denoiser is the honest baseline of a one-step model: the same network, one call.

    Args:
        network: the diffusion model.
        path: owner of `sigma_data`.
        num_steps: Heun steps N, costing 2 N - 1 network calls, with guidance twice as many.
        guidance: scale of classifier-free guidance; None for the plain model.
    """
    times = time_grid(num_steps, path)
    calls = 1 if guidance is None else 2

    def solve(noise: Tensor, labels: Tensor | None, generator: Generators) -> Tensor:
        F = Guided(network, labels, _scales(guidance, noise))
        return sample_ode(F, noise, times, path=path, solver="heun")

    def denoise(noise: Tensor, labels: Tensor | None, generator: Generators) -> Tensor:
        F = Guided(network, labels, _scales(guidance, noise))
        return sample_consistency(F, noise, (path.t_max(),), path=path)

    return {
        "teacher": Sampler(calls * num_evaluations(times, "heun"), solve),
        "denoiser": Sampler(calls, denoise),
    }


def _scales(guidance: float | None, noise: Tensor) -> Tensor | None:
    """One guidance scale per sample. (B,), or None."""
    if guidance is None:
        return None
    return torch.full(noise.shape[:1], guidance, dtype=noise.dtype, device=noise.device)
