# SPDX-License-Identifier: Apache-2.0
"""Sampling from a network that knows where its step ends: multistep sCD, MeanFlow.

No fresh noise enters between the steps; the result is a function of the first noise.
Axes: B batch, ... data axes.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scm_lightning.core import TrigFlow
from scm_lightning.sampling.times import OnStep, check_times

Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(F, x_t, t, t_end) to the state at t_end; (B, ...), (B, ...), (B,), (B,)."""


@torch.no_grad()
def sample_flow_map(
    F: Callable[[Tensor, Tensor, Tensor], Tensor],
    noise: Tensor,
    times: Sequence[float],
    *,
    step: Step,
    path: TrigFlow,
    on_step: OnStep | None = None,
) -> Tensor:
    """Jump from time to time, with one network call each.

    Args:
        F: F(u, t, t_end), its conditions bound by `core.Bound`.
        noise: start at `times[0]`. (B, ...), data units: standard deviation `sigma_data`.
        times: descending angles in [0, pi/2]. Radians.
        step: what F means: `FlowMap.jump`.
        path: owner of `sigma_data`.
        on_step: told of every time after the first, and the state there.

    Returns:
        The state at `times[-1]`. (B, ...), data units.

    Raises:
        ValueError: if the times leave [0, pi/2] or do not descend.
    """
    x = noise
    for time, end in itertools.pairwise(check_times(times, last=0.0)):
        t, t_end = (torch.full(x.shape[:1], a, dtype=x.dtype, device=x.device) for a in (time, end))
        x = step(F(x / path.sigma_data, t, t_end), x, t, t_end)
        if on_step is not None:
            on_step(end, x)
    return x
