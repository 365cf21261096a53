# SPDX-License-Identifier: Apache-2.0
"""Consistency models of segments: "multistep sCD" of the paper.

Algorithm 1 with t - s in place of t, s being the edge of the segment below t.
Source: arXiv 2410.11081, Table 6, which gives no recipe; after arXiv 2403.06807.
Axes: B batch, ... data axes.
"""

from typing import Literal

from torch import Tensor

from scm_lightning.autodiff import MethodName, TangentComputer, computer_of
from scm_lightning.core import (
    TRIGONOMETRIC,
    Bound,
    TangentBound,
    TangentWarmup,
    TimeProposal,
    TrigFlow,
    tangent,
)
from scm_lightning.core import Segments as Parts
from scm_lightning.objectives.consistency import ConsistencyObjective
from scm_lightning.objectives.objective import Point, Times
from scm_lightning.sampling import SegmentJumps


class Segments(ConsistencyObjective):
    """A model that jumps to the lower edge of each of M parts, and is sampled in M steps.

    Args:
        num: number of parts M; the student is built with `two_times: true`.
        times: which times to train at; the paper's on CIFAR-10 by default.
        tangents: how the derivative is computed; or the short name of a method.
        bound: what is done to g.
        warmup: how the second term of g comes in.
        weighting: "learned" or "none"; see `ConsistencyObjective`.
        weighting_lr: learning rate of the weighting head; None for the student's.
        prior: "folded" or "extra"; see `ConsistencyObjective`.

    Raises:
        ValueError: if there are fewer than two parts, or far too many.

    Source: arXiv 2410.11081, Table 6; equal angles (ours).
    """

    two_times = True
    tangents: TangentComputer

    def __init__(
        self,
        num: int = 4,
        times: TimeProposal = TimeProposal(P_mean=-1.0, P_std=1.4),
        tangents: TangentComputer | MethodName = "dual",
        bound: TangentBound = TangentBound(),
        warmup: TangentWarmup = TangentWarmup(),
        weighting: Literal["learned", "none"] = "learned",
        weighting_lr: float | None = None,
        prior: Literal["folded", "extra"] = "folded",
    ) -> None:
        if num < 2:
            raise ValueError(
                f"a model of segments has at least 2, got {num}; with one it is the objective "
                "Consistency"
            )
        parts = Parts(num)
        steps = SegmentJumps(parts)
        super().__init__(times, bound, warmup, weighting, weighting_lr, prior, steps)
        self.parts = parts
        self.tangents = computer_of(tangents)

    def times_at(self, t: Tensor, path: TrigFlow) -> Times:
        """Each time with the lower edge of its part."""
        return t, self.parts.lower_edge(t)

    def tangent(self, student: Bound, at: Point, path: TrigFlow, r: float) -> tuple[Tensor, Tensor]:
        """See `ConsistencyObjective`."""
        assert at.t_end is not None
        x_t, dx_dt, sigma_data, duration = at.x_t, at.dx_dt, path.sigma_data, at.t - at.t_end
        F, cos_sin_dF_dt = self.tangents(
            *(student, x_t, at.t, dx_dt),
            sigma_data=sigma_data,
            t_end=at.t_end,
            scale=duration.cos() * TRIGONOMETRIC.scale(at.t, at.t_end),
        )
        g = tangent(
            *(F.detach(), cos_sin_dF_dt, x_t, dx_dt, duration),
            sigma_data=sigma_data,
            r=r,
            warmup=self.warmup.kind,
        )
        return F, g
