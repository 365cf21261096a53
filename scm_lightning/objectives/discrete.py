# SPDX-License-Identifier: Apache-2.0
"""Discrete-time consistency training and distillation: one DDIM step for the derivative.

Needs no forward derivative of the network, at one more forward. More intervals are nearer to
continuous time until rounding wins: the paper's turning point is 1,024.
Source: arXiv 2410.11081, Algorithm 2 and Figure 5c.
Axes: B batch, ... data axes.
"""

from typing import Literal

import torch
from torch import Tensor

from scm_lightning.autodiff.methods import same_random_numbers
from scm_lightning.core import (
    Bound,
    TangentBound,
    TangentWarmup,
    TimeGrid,
    TimeProposal,
    TrigFlow,
    at_least_float32,
    discrete_tangent,
)
from scm_lightning.objectives.consistency import ConsistencyObjective
from scm_lightning.objectives.objective import Point, Times


class Discrete(ConsistencyObjective):
    """A consistency model trained by differences over the intervals of a grid (dsCD, dsCT).

    Args:
        num_intervals: intervals N of EDM's grid.
        times: which times to train at; each is moved to the upper end of its interval.
        bound: what is done to g.
        warmup: how the second term of g comes in; Algorithm 1's kind alone.
        weighting: "learned" or "none"; see `ConsistencyObjective`.
        weighting_lr: learning rate of the weighting head; None for the student's.
        prior: "folded" or "extra"; see `ConsistencyObjective`.

    Raises:
        ValueError: if there is no interval, or far too many, or the warm-up is rCM's.

    Source: arXiv 2410.11081, Algorithm 2.
    """

    def __init__(
        self,
        num_intervals: int = 1024,
        times: TimeProposal = TimeProposal(P_mean=-1.0, P_std=1.4),
        bound: TangentBound = TangentBound(),
        warmup: TangentWarmup = TangentWarmup(),
        weighting: Literal["learned", "none"] = "learned",
        weighting_lr: float | None = None,
        prior: Literal["folded", "extra"] = "folded",
    ) -> None:
        if warmup.kind != "scm":
            raise ValueError(
                f"discrete time takes Algorithm 1's warm-up, got {warmup.kind}; set kind to scm"
            )
        super().__init__(times, bound, warmup, weighting, weighting_lr, prior)
        self.grid = TimeGrid(num_intervals)

    def times_at(self, t: Tensor, path: TrigFlow) -> Times:
        """The upper end of the interval that t lies in."""
        return self.grid.interval(t, path)[1], None

    def tangent(self, student: Bound, at: Point, path: TrigFlow, r: float) -> tuple[Tensor, Tensor]:
        """See `ConsistencyObjective`; over the interval below t."""
        x_t, t, sigma_data = at.x_t, at.t, path.sigma_data
        before, _ = self.grid.interval(t, path)
        x_before = path.jump(at.dx_dt / sigma_data, x_t, t, before)
        with torch.no_grad(), same_random_numbers(x_t):
            F_before = student(x_before / sigma_data, before)
        F = at_least_float32(student(x_t / sigma_data, t))
        g = discrete_tangent(
            F.detach(), F_before, x_t, at.dx_dt, t, before, sigma_data=sigma_data, r=r
        )
        return F, g
