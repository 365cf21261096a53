# SPDX-License-Identifier: Apache-2.0
r"""Sources of dx_t/dt, the only difference between sCT and sCD.

    sCT   dx/dt = cos(t) z - sin(t) x0              one pair's, unbiased
    sCD   dx/dt = sigma_data F_pre(x_t / sigma_data, t)      the teacher's, guided by a scale

Source: arXiv 2410.11081, Algorithm 1.
Axes: B batch, ... data axes.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from scm_lightning.core import Guided, TrigFlow


class Velocity(ABC):
    """A source of dx_t/dt.

    Attributes:
        needs_teacher: whether there has to be a teacher.
    """

    needs_teacher: bool = False

    @abstractmethod
    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        x0: Tensor,
        z: Tensor,
        path: TrigFlow,
        teacher: Guided | None,
    ) -> Tensor:
        """Velocity at (x_t, t), without gradient.

        Args:
            x_t: noisy data. (B, ...), data units.
            t: times. (B,), radians.
            x0: the data in x_t. (B, ...), data units.
            z: the noise in x_t, of standard deviation `sigma_data`. (B, ...), data units.
            path: owner of `sigma_data`.
            teacher: F(u, t) of a diffusion model with its conditions, or None.

        Returns:
            dx_t/dt. (B, ...), data units per radian.
        """


class PairVelocity(Velocity):
    """Consistency training (sCT): the velocity of the pair (x0, z) that made x_t."""

    needs_teacher = False

    def __call__(
        self, x_t: Tensor, t: Tensor, x0: Tensor, z: Tensor, path: TrigFlow, teacher: Guided | None
    ) -> Tensor:
        """See `Velocity`."""
        return path.velocity(x0, z, t)


class TeacherVelocity(Velocity):
    """Consistency distillation (sCD): the velocity of a frozen diffusion model."""

    needs_teacher = True

    def __call__(
        self, x_t: Tensor, t: Tensor, x0: Tensor, z: Tensor, path: TrigFlow, teacher: Guided | None
    ) -> Tensor:
        """See `Velocity`."""
        assert teacher is not None, "ConsistencyModule checks this before training"
        with torch.no_grad():
            return path.sigma_data * teacher(x_t / path.sigma_data, t)
