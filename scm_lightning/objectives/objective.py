# SPDX-License-Identifier: Apache-2.0
"""Objective of a student, as an object: times to train at, a loss, and a way to sample.

Axes: B batch, ... data axes. Times in radians.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scm_lightning.autodiff import MethodName, TangentComputer, computer_of
from scm_lightning.core import Bound, TimeProposal, TrigFlow
from scm_lightning.sampling import Steps

Times = tuple[Tensor, Tensor | None]
"""Times t, and the times that a flow map leads to, if the student takes any. (B,) each, radians."""


class Point(NamedTuple):
    """Noisy data, what they are made of, and where the ODE leads from them.

    Attributes:
        x_t: noisy data. (B, ...), data units.
        t: times. (B,), radians.
        t_end: times that a flow map leads to. (B,), radians, or None.
        x0: the data in x_t. (B, ...), data units.
        z: the noise in x_t, of standard deviation `sigma_data`. (B, ...), data units.
        dx_dt: velocity of the ODE, without gradient. (B, ...), data units per radian.
        velocity: the same at other places: (x, t) to dx/dt. A teacher's is that of the ODE there;
            `PairVelocity` gives the pair's own, whatever x.
    """

    x_t: Tensor
    t: Tensor
    t_end: Tensor | None
    x0: Tensor
    z: Tensor
    dx_dt: Tensor
    velocity: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Losses:
    """Losses of a batch, and numbers to log.

    Attributes:
        losses: loss of every sample. (B,).
        norm: L2 norm of what every sample is pulled by, before it is bounded or weighted; it tells
            a healthy run from a failing one. (B,).
        logs: numbers for the log, by name. () each.
    """

    losses: Tensor
    norm: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """A loss of one student, and how that student is sampled.

    An `__init__` of your own calls that of `Objective` and sets `steps`, which has no default.
    Networks that it builds are trained only if `parameter_groups` names them.

    Attributes:
        tangents: how a derivative along the ODE is computed, at a fixed end; None for an objective
            without one.
        steps: how the student is sampled.
        needs_teacher: whether there has to be a teacher, for `velocity` at other places.
        two_times: whether the student is told where its step ends: F(u, t, ..., t_end).
        max_steps: optimizer steps of the run, which its module sets before training; None outside
            of a run, and for one without such a number.
    """

    max_steps: int | None = None
    two_times: bool = False
    needs_teacher: bool = False
    tangents: TangentComputer | None = None
    steps: Steps

    @abstractmethod
    def sample_times(self, num: int, path: TrigFlow, device: torch.device | str) -> Times:
        """Draw times to train at.

        Args:
            num: number of samples B.
            path: owner of `sigma_data`.
            device: device of the result.
        """

    @abstractmethod
    def times_at(self, t: Tensor, path: TrigFlow) -> Times:
        """Return the result of `sample_times` for given t: for measurements at chosen times.

        Args:
            t: times. (B,), radians.
            path: owner of `sigma_data`.
        """

    @abstractmethod
    def loss(self, student: Bound, at: Point, path: TrigFlow, step: int) -> Losses:
        """Compute the losses of one batch.

        Args:
            student: F(u, t) of the network that is trained, with its conditions.
            at: where it is trained.
            path: owner of `sigma_data`.
            step: optimizer steps taken so far.
        """

    def at_step(self, step: int) -> dict[str, float]:
        """Parts of the loss that change with the step, by name: columns of the log.

        Args:
            step: optimizer steps taken so far.
        """
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of the optimizer for what the objective trains beside the student."""
        return []


class IntervalObjective(Objective, ABC):
    """Common part of flow maps between two times: of two drawn, the earlier is where t leads.

    Args:
        times: which times to train at.
        share_of_intervals: probability that the two differ; where they do not, the loss is velocity
            matching.
        tangents: how the derivative is computed; or the short name of a method.
    """

    two_times = True
    tangents: TangentComputer

    def __init__(
        self,
        times: TimeProposal,
        share_of_intervals: float,
        tangents: TangentComputer | MethodName,
    ) -> None:
        super().__init__()
        self.times = times
        self.share_of_intervals = share_of_intervals
        self.tangents = computer_of(tangents)

    def sample_times(self, num: int, path: TrigFlow, device: torch.device | str) -> Times:
        """Draw t and s <= t."""
        return self.times.sample_pairs(num, self.share_of_intervals, path, device=device)

    def times_at(self, t: Tensor, path: TrigFlow) -> Times:
        """The end is t itself: velocity matching."""
        return t, t
