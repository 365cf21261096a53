# SPDX-License-Identifier: Apache-2.0
"""Losses beside the objective, with networks of their own: distribution matching, adversaries."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from scm_lightning.core import Bound, Guided, TrigFlow


class TermLoss(NamedTuple):
    """Loss of a term on a batch, and numbers to log.

    Attributes:
        loss: what is added to the objective's loss. ().
        logs: numbers for the log, by name. () each.
    """

    loss: Tensor
    logs: Mapping[str, Tensor]


class Term(nn.Module, ABC):
    """A further loss of a student; its parameters are a group of the optimizer.

    A network that plays against the student steps with it. Where its score is to move the student
    alone, call it between `requires_grad_(False)` and `requires_grad_(True)`; one whose parameters
    are exchanged for others, by `torch.func.functional_call`, gets no gradients under fsdp2.

    Attributes:
        needs_teacher: whether there has to be a teacher.
        takes_two_times: whether it can be trained beside a student that is told where its step
            ends.
    """

    needs_teacher: bool = False
    takes_two_times: bool = False

    def follow(self, student: nn.Module) -> None:
        """Build what is made from the student, once it has its weights and before training.

        Args:
            student: the network that is trained.
        """

    @abstractmethod
    def loss(self, student: Bound, teacher: Guided | None, path: TrigFlow, x0: Tensor) -> TermLoss:
        """Compute the loss of one batch.

        Args:
            student: F(u, t) of the network that is trained, with its conditions.
            teacher: F(u, t) of the frozen diffusion model, or None.
            path: owner of `sigma_data`.
            x0: data. (B, ...), data units.
        """
