# SPDX-License-Identifier: Apache-2.0
r"""Consistency models in continuous time: Algorithm 1 of the paper, literally.

    F, cos sin dF/dt   one pass of the student and its derivative along the ODE
    g                  the tangent, warmed up by r, then bounded
    loss               e^w(t) / D ||F - F^- - g||^2 - w(t)

Source: Lu and Song, arXiv 2410.11081, Algorithm 1; defaults from its CIFAR-10 experiments.
Axes: B batch, ... data axes. Times in radians.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from scm_lightning.autodiff import MethodName, TangentComputer, computer_of
from scm_lightning.core import (
    Bound,
    TangentBound,
    TangentWarmup,
    TimeProposal,
    TrigFlow,
    consistency_loss,
    tangent,
    tangent_norm,
)
from scm_lightning.networks import WeightingHead
from scm_lightning.objectives.objective import Losses, Objective, Point, Times
from scm_lightning.sampling import FreshNoise, Steps


class ConsistencyObjective(Objective, ABC):
    """Common part of all consistency models: the loss, its bound and its weight.

    To change a part in an objective of your own, override the method named for it: `tangent`,
    `log_weight`, `sample_times`, `loss`.

    Args:
        times: which times to train at; the paper's on CIFAR-10 by default.
        bound: what is done to g.
        warmup: how the second term of g comes in.
        weighting: "learned" is the adaptive weight w_phi(t), started at its optimum; "none" keeps
            it there.
        weighting_lr: learning rate of the weighting head; None for the student's.
        prior: "folded" is Algorithm 1, whose g holds the prior weight already. "extra" multiplies
            the loss by 1 / (sigma_data tan t) once more, as several public ports do.
        steps: how the model is sampled.
    """

    def __init__(
        self,
        times: TimeProposal,
        bound: TangentBound,
        warmup: TangentWarmup,
        weighting: Literal["learned", "none"],
        weighting_lr: float | None,
        prior: Literal["folded", "extra"],
        steps: Steps = FreshNoise(),
    ) -> None:
        super().__init__()
        self.steps = steps
        self.times = times
        self.bound = bound
        self.warmup = warmup
        self.weighting_head = WeightingHead().requires_grad_(weighting == "learned")
        self.weighting_lr = weighting_lr
        self.prior = prior

    def sample_times(self, num: int, path: TrigFlow, device: torch.device | str) -> Times:
        """See `Objective`."""
        return self.times_at(self.times.sample(num, path, device=device), path)

    def loss(self, student: Bound, at: Point, path: TrigFlow, step: int) -> Losses:
        """See `Objective`."""
        F, g = self.tangent(student, at, path, self.warmup.r(step, self.max_steps))
        log_weight = self.log_weight(at.t, path, num_elements=F[0].numel())
        losses = consistency_loss(F, self.bound(g), log_weight)
        return Losses(losses, tangent_norm(g))

    def at_step(self, step: int) -> dict[str, float]:
        """The warm-up's r."""
        return {"r": self.warmup.r(step, self.max_steps)}

    @abstractmethod
    def tangent(self, student: Bound, at: Point, path: TrigFlow, r: float) -> tuple[Tensor, Tensor]:
        """The student's output and the tangent g, before it is bounded.

        Args:
            student: F(u, t) of the network that is trained, with its conditions.
            at: where it is trained.
            path: owner of `sigma_data`.
            r: warm-up in [0, 1].

        Returns:
            F with its gradient, and g without one. (B, ...) each.
        """

    def log_weight(self, t: Tensor, path: TrigFlow, num_elements: int) -> Tensor:
        """Log weight w(t) of the loss.

        The head learns w beside its optimum for a unit tangent: log D with the L2 norm, 0 with the
        others, whose squared mean is of order one.

        Args:
            t: times. (B,), radians.
            path: owner of `sigma_data`.
            num_elements: elements D of one sample.

        Returns:
            w(t). (B,).
        """
        log_weight: Tensor = self.weighting_head(t)
        if self.bound.kind == "l2":
            log_weight = log_weight + math.log(num_elements)
        if self.prior == "extra":
            # In the loss's second term this only adds a constant, without gradient.
            log_weight = log_weight - (path.sigma_data * t.tan()).log()
        return log_weight

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The weighting head, with its own learning rate if it has one."""
        rate = {} if self.weighting_lr is None else {"lr": self.weighting_lr}
        return [{"params": list(self.weighting_head.parameters()), **rate}]


class Consistency(ConsistencyObjective):
    """The consistency model f(x_t, t) = cos(t) x_t - sin(t) sigma_data F, in continuous time.

    Args:
        times: which times to train at; the paper's on CIFAR-10 by default.
        tangents: how the derivative is computed; or the short name of a method.
        bound: what is done to g; Algorithm 1 normalizes it.
        warmup: how the second term of g comes in.
        weighting: "learned" or "none"; see `ConsistencyObjective`.
        weighting_lr: learning rate of the weighting head; None for the student's.
        prior: "folded" or "extra"; see `ConsistencyObjective`.

    Source: arXiv 2410.11081, Algorithm 1.
    """

    tangents: TangentComputer

    def __init__(
        self,
        times: TimeProposal = TimeProposal(P_mean=-1.0, P_std=1.4),
        tangents: TangentComputer | MethodName = "dual",
        bound: TangentBound = TangentBound(),
        warmup: TangentWarmup = TangentWarmup(),
        weighting: Literal["learned", "none"] = "learned",
        weighting_lr: float | None = None,
        prior: Literal["folded", "extra"] = "folded",
    ) -> None:
        super().__init__(times, bound, warmup, weighting, weighting_lr, prior)
        self.tangents = computer_of(tangents)

    def times_at(self, t: Tensor, path: TrigFlow) -> Times:
        """See `Objective`."""
        return t, None

    def tangent(self, student: Bound, at: Point, path: TrigFlow, r: float) -> tuple[Tensor, Tensor]:
        """See `ConsistencyObjective`."""
        x_t, t, sigma_data = at.x_t, at.t, path.sigma_data
        F, cos_sin_dF_dt = self.tangents(student, x_t, t, at.dx_dt, sigma_data=sigma_data)
        g = tangent(
            *(F.detach(), cos_sin_dF_dt, x_t, at.dx_dt, t),
            sigma_data=sigma_data,
            r=r,
            warmup=self.warmup.kind,
        )
        return F, g
