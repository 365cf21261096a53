# SPDX-License-Identifier: Apache-2.0
r"""Sampling from a consistency model in one, two or n steps.

    x   <- sigma_data n                                    at times[0], about pi/2
    x0  <- f(x, times[0])
    x   <- cos(s) x0 + sin(s) sigma_data n',   x0 <- f(x, s)     for every further time s

Every step after the first draws fresh noise.
Source: arXiv 2410.11081, Section 4 with times (t_max, 1.1); multistep sampling: arXiv 2303.01469,
Algorithm 1.
Axes: B batch, ... data axes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scm_lightning.core import TrigFlow
from scm_lightning.core.noise import Generators
from scm_lightning.sampling.times import OnStep, check_times


@torch.no_grad()
def sample_consistency(
    F: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    times: Sequence[float],
    *,
    path: TrigFlow,
    generator: Generators = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw samples with one network call per time.

    Args:
        F: F(u, t) of a consistency model, its conditions bound by `core.Bound`; also, as a
            baseline, of a diffusion model, whose one step is the denoiser's blurred guess.
        noise: start at `times[0]`. (B, ...), data units: standard deviation `sigma_data`.
        times: descending angles in (0, pi/2], for example (path.t_max(), 1.1). Radians.
        path: owner of `sigma_data`.
        generator: source of the fresh noise of later steps; see `standard_normal`.
        on_step: told of every x0, as the state at time 0, where every step leads.

    Returns:
        Samples. (B, ...), data units.

    Raises:
        ValueError: if the times leave (0, pi/2] or do not descend.

    Source: arXiv 2410.11081, Section 4; t = 1.1 for every data set and size there.
    """
    x0 = torch.zeros_like(noise)
    for index, time in enumerate(check_times(times, last=1e-6)):
        t = torch.full(noise.shape[:1], time, dtype=noise.dtype, device=noise.device)
        x_t = noise if index == 0 else path.add_noise(x0, t, generator)[0]
        x0 = path.consistency(F(x_t / path.sigma_data, t), x_t, t)
        if on_step is not None:
            on_step(0.0, x0)
    return x0
