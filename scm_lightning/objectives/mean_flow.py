# SPDX-License-Identifier: Apache-2.0
r"""MeanFlow on the TrigFlow path: F is the average velocity between two times.

    x_s  = x_t - (t - s) sigma_data F(x_t / sigma_data, t, s)                one step
    loss = ||F - (F^- + G)||^2 / (||.||^2 + c)^p                             G: see `FlowMap`

At s = t it is velocity matching.
Source: Geng et al., arXiv 2505.13447, Algorithm 1, there on the linear path; the identity holds on
any path.
Axes: B batch, ... data axes.
"""

from scm_lightning.autodiff import MethodName, TangentComputer
from scm_lightning.core import (
    AVERAGE_VELOCITY,
    Bound,
    TimeProposal,
    TrigFlow,
    adaptive_loss,
    tangent_norm,
    widen,
)
from scm_lightning.objectives.objective import IntervalObjective, Losses, Point
from scm_lightning.sampling import EqualJumps


class MeanFlow(IntervalObjective):
    """A flow map x_s = x_t - (t - s) sigma_data F; the student is built with `two_times: true`.

    Args:
        times: which times to train at; of two drawn, the later one is t and the earlier one s.
        share_of_intervals: probability that s differs from t; where it does not, the loss is
            velocity matching.
        p: power of the adaptive weight; 0 for none.
        c: constant of the adaptive weight, added to the sum of squares of a sample.
        tangents: how the derivative is computed; or the short name of a method.

    Raises:
        ValueError: if an option is out of range.

    Source: arXiv 2505.13447, Algorithm 1; 25 % intervals, p = 1, c = 1e-3 there.
    """

    def __init__(
        self,
        times: TimeProposal = TimeProposal(P_mean=-0.8, P_std=1.6),
        share_of_intervals: float = 0.25,
        p: float = 1.0,
        c: float = 1e-3,
        tangents: TangentComputer | MethodName = "dual",
    ) -> None:
        if not (0.0 <= share_of_intervals <= 1.0 and p >= 0 and c > 0):
            raise ValueError(
                f"share_of_intervals must be a probability, p at least 0 and c positive, got "
                f"{share_of_intervals}, {p} and {c}; MeanFlow uses 0.25, 1 and 1e-3"
            )
        super().__init__(times, share_of_intervals, tangents)
        self.p = p
        self.c = c
        self.steps = EqualJumps()

    def loss(self, student: Bound, at: Point, path: TrigFlow, step: int) -> Losses:
        """See `Objective`."""
        assert at.t_end is not None
        sigma_data, duration = path.sigma_data, at.t - at.t_end
        F, duration_dF_dt = self.tangents(
            *(student, at.x_t, at.t, at.dx_dt),
            sigma_data=sigma_data,
            t_end=at.t_end,
            scale=duration,
        )
        G = AVERAGE_VELOCITY.residual(
            *(F.detach(), duration_dF_dt, at.x_t, at.dx_dt, duration), sigma_data=sigma_data
        )
        losses = adaptive_loss(F, widen(F.detach()) + G, p=self.p, c=self.c)
        return Losses(losses, tangent_norm(G))
