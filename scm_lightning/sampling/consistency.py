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

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scm_lightning.core import TrigFlow
from scm_lightning.core.noise import Generators


def check_times(times: Sequence[float], *, last: float) -> None:
    """Refuse sampling times that do not descend from at most pi/2 to at least `last`.

    Raises:
        ValueError: if they do not.
    """
    if not times or any(not last <= time <= math.pi / 2 for time in times):
        raise ValueError(
            f"sampling times must be angles in [{last:g}, pi/2], got {list(times)}; a noise level "
            "sigma is the angle atan(sigma / sigma_data)"
        )
    if any(later >= earlier for earlier, later in itertools.pairwise(times)):
        raise ValueError(f"sampling times must descend, got {list(times)}; put the largest first")


@torch.no_grad()
def sample_consistency(
    F: Callable[..., Tensor],
    noise: Tensor,
    times: Sequence[float],
    *,
    path: TrigFlow,
    generator: Generators = None,
) -> Tensor:
    """Draw samples with one network call per time.

    Args:
        F: F(u, t) of a consistency model; also, as a baseline, of a
            diffusion model, whose one step is the denoiser's blurred guess.
        noise: start at `times[0]`. (B, ...), data units: standard deviation `sigma_data`.
        times: descending angles in (0, pi/2], for example (path.t_max(), 1.1). Radians.
        path: owner of `sigma_data`.
        generator: source of the fresh noise of later steps; see `standard_normal`.

    Returns:
        Samples. (B, ...), data units.

    Raises:
        ValueError: if the times leave (0, pi/2] or do not descend.

    Source: arXiv 2410.11081, Section 4; t = 1.1 for every data set and size there.
    """
    check_times(times, last=1e-6)
    x0 = torch.zeros_like(noise)
    for index, time in enumerate(times):
        t = torch.full(noise.shape[:1], time, dtype=noise.dtype, device=noise.device)
        x_t = noise if index == 0 else path.add_noise(x0, t, generator)[0]
        x0 = path.consistency(F(x_t / path.sigma_data, t), x_t, t)
    return x0
