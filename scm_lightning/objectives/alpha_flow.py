# SPDX-License-Identifier: Apache-2.0
r"""alpha-Flow: from matching velocities to a consistency model, by shortening one step.

    m        = t - alpha (t - s),     u_m = cos(t - m) u - sin(t - m) w        a step along w
    target   = {sin(t-m) [cos(m-s) w - sin(m-s) u] + sin(m-s) F^-(u_m, m, s)} / sin(t-s)
    loss     = ||F - target||^2 / (||.||^2 + c),                               alpha > 0
             = ||F - (F^- + k G)||^2 / (||.||^2 + c),  k = (t-s) / sin(t-s),   alpha = 0

alpha = 1 is velocity matching at every s; (target - F) / alpha tends to k G, G being the residual
of `FlowMap`. The 1 / alpha before the squares and the alpha of their adaptive weight cancel.
Source: Zhang et al., arXiv 2510.20771, Definition 1 and Algorithm 1, there on the linear path; on
TrigFlow's map (ours).
Axes: B batch, ... data axes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.autodiff import MethodName, TangentComputer
from scm_lightning.autodiff.methods import same_random_numbers
from scm_lightning.core import (
    TRIGONOMETRIC,
    Bound,
    Length,
    TimeProposal,
    TrigFlow,
    adaptive_loss,
    check_length,
    expand_time,
    steps_of,
    tangent_norm,
    widen,
)
from scm_lightning.objectives.objective import IntervalObjective, Losses, Point
from scm_lightning.sampling import FreshNoise


def alpha_flow_target(
    F_m: Tensor, u: Tensor, w: Tensor, t: Tensor, middle: Tensor, t_end: Tensor
) -> Tensor:
    """Target of F at t, given F_m after a step along w.

    Args:
        F_m: network output at the end of the step, `middle`, without gradient. (B, ...).
        u: x_t / sigma_data. (B, ...), unit variance.
        w: velocity / sigma_data at t. (B, ...), per radian.
        t: times. (B,), radians.
        middle: times m in [s, t] where the step ends. (B,), radians.
        t_end: times s. (B,), radians.

    Returns:
        The target, w where s = t; in float64 where the device has it. (B, ...), unit variance.

    Source: arXiv 2510.20771, Definition 1; on TrigFlow's map (ours).
    """
    F_m, u, w, t, m, s = map(widen, (F_m, u, w, t, middle, t_end))
    after, whole = expand_time(m - s, u), expand_time(t - s, u)
    step = expand_time(t - m, u)
    sum_of_two = step.sin() * (after.cos() * w - after.sin() * u) + after.sin() * F_m
    return torch.where(whole > 0, sum_of_two / whole.sin().clamp_min(1e-30), w)


@dataclass(frozen=True)
class AlphaSchedule:
    """alpha = 1 - sigmoid(gamma (step - (start + end) / 2) / (end - start)), cut off near 0 and 1.

    Args:
        start: place at which alpha begins to fall: an optimizer step (600000), a share of
            `trainer.max_steps` (0.5), or None for the end of the run.
        end: place at which it has fallen, in the same units.
        gamma: steepness.
        cut: alphas below are 0, where a derivative takes the place of a step; above 1 - cut, 1.

    Raises:
        ValueError: if a length or the cut is out of range.

    Source: arXiv 2510.20771: from 600,000 to 1,000,000 of 1,200,000 steps, gamma 25, cut 5e-3.
    """

    start: Length = 600_000
    end: Length = 1_000_000
    gamma: float = 25.0
    cut: float = 5e-3

    def __post_init__(self) -> None:
        check_length(self.start, "schedule.start")
        check_length(self.end, "schedule.end", least=1)
        if not (self.gamma > 0 and 0 < self.cut < 0.5):
            raise ValueError(
                f"alpha falls with gamma > 0 and 0 < cut < 0.5, got {self.gamma} and {self.cut}"
            )
        if isinstance(self.start, int) and isinstance(self.end, int):
            self.ends(None)

    def ends(self, max_steps: int | None) -> tuple[int, int]:
        """Start and end, in optimizer steps.

        Args:
            max_steps: optimizer steps of the run.

        Raises:
            ValueError: if they are not in order, or shares of a run without a number of steps.
        """
        start = steps_of(self.start, "schedule.start", max_steps)
        end = steps_of(self.end, "schedule.end", max_steps)
        if start >= end:
            raise ValueError(f"alpha falls between steps start < end, got {start} and {end}")
        return start, end

    def alpha(self, step: int, max_steps: int | None = None) -> float:
        """alpha after so many optimizer steps, in [0, 1].

        Args:
            step: optimizer steps taken so far.
            max_steps: optimizer steps of the run, of which start and end may be shares.
        """
        start, end = self.ends(max_steps)
        place = (step - (start + end) / 2) / (end - start)
        alpha = 0.5 * (1 - math.tanh(self.gamma * place / 2))
        return 0.0 if alpha < self.cut else 1.0 if alpha > 1 - self.cut else alpha


class AlphaFlow(IntervalObjective):
    """A flow map on TrigFlow, trained from short steps; the student has `two_times: true`.

    Args:
        times: which times to train at; of two drawn, the later one is t and the earlier one s.
        share_of_intervals: probability that s differs from t; where it does not, the loss is
            velocity matching.
        schedule: how alpha falls.
        c: constant of the adaptive weight, added to the mean of squares as in the authors' code.
        tangents: how the derivative is computed once alpha is 0.

    Raises:
        ValueError: if an option is out of range.

    Source: arXiv 2510.20771; 25 % velocity matching there, 50 % in the largest model.
    """

    def __init__(
        self,
        times: TimeProposal = TimeProposal(P_mean=-0.8, P_std=1.6),
        share_of_intervals: float = 0.75,
        schedule: AlphaSchedule = AlphaSchedule(),
        c: float = 1e-3,
        tangents: TangentComputer | MethodName = "dual",
    ) -> None:
        if not (0.0 <= share_of_intervals <= 1.0 and c > 0):
            raise ValueError(
                "share_of_intervals must be a probability and c positive, got "
                f"{share_of_intervals} and {c}; alpha-Flow uses 0.75 and 1e-3"
            )
        super().__init__(times, share_of_intervals, tangents)
        self.schedule = schedule
        self.c = c
        self._is_checked = False
        self.steps = FreshNoise(tells_end=True)

    def loss(self, student: Bound, at: Point, path: TrigFlow, step: int) -> Losses:
        """See `Objective`."""
        alpha = self.schedule.alpha(step, self.max_steps)
        if alpha == 0:
            F, pull = self._derivative(student, at, path)
        else:
            if not self._is_checked:  # now, not in the middle of a run
                with same_random_numbers(at.x_t):
                    self._derivative(student, at, path)
                self._is_checked = True
            F, pull = self._short_step(student, at, path, alpha)
        losses = adaptive_loss(F, widen(F.detach()) + pull, c=self.c * F[0].numel())
        return Losses(losses, tangent_norm(pull))

    def at_step(self, step: int) -> dict[str, float]:
        """alpha."""
        return {"alpha": self.schedule.alpha(step, self.max_steps)}

    def _short_step(
        self, student: Bound, at: Point, path: TrigFlow, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """F, and target - F."""
        assert at.t_end is not None
        u, w = at.x_t / path.sigma_data, at.dx_dt / path.sigma_data
        middle = at.t - alpha * (at.t - at.t_end)
        u_m = TRIGONOMETRIC.jump(w, u, at.t, middle, sigma_data=1.0)
        F = student(u, at.t, at.t_end)
        with torch.no_grad(), same_random_numbers(u):
            F_m = student(u_m, middle, at.t_end)
        return F, alpha_flow_target(F_m, u, w, at.t, middle, at.t_end) - widen(F.detach())

    def _derivative(self, student: Bound, at: Point, path: TrigFlow) -> tuple[Tensor, Tensor]:
        """F, and k G."""
        assert at.t_end is not None
        duration = at.t - at.t_end
        F, sin_dF_dt = self.tangents(
            *(student, at.x_t, at.t, at.dx_dt),
            sigma_data=path.sigma_data,
            t_end=at.t_end,
            scale=TRIGONOMETRIC.scale(at.t, at.t_end),
        )
        G = TRIGONOMETRIC.residual(
            *(F.detach(), sin_dF_dt, at.x_t, at.dx_dt, duration), sigma_data=path.sigma_data
        )
        return F, expand_time(1 / torch.sinc(widen(duration) / math.pi), G) * G
