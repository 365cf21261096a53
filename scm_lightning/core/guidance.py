# SPDX-License-Identifier: Apache-2.0
r"""Classifier-free guidance: a teacher made stronger, and the scale as an input of the student.

    F_s = F(u, t, no class) + s (F(u, t, class) - F(u, t, no class)),    s = 1 is the plain model

F is linear in the denoiser and in the velocity, so guiding F guides both. The student takes s as an
input, drawn per sample from U[1, 2], and then needs one call where the teacher needs two.
Source: arXiv 2410.11081, Section 5.3 and Table 5; Ho and Salimans, arXiv 2207.12598.
Axes: B batch, ... data axes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.core.conditions import NULL_LABEL, check_conditions
from scm_lightning.core.trigflow import at_least_float32, expand_time


@dataclass(frozen=True)
class GuidanceProposal:
    """Uniform distribution of the guidance scales that a student is trained at.

    Args:
        low: smallest scale; 1 is the teacher without guidance.
        high: largest scale.

    Raises:
        ValueError: if the scales are not a finite range.

    Source: arXiv 2410.11081, Table 5: [1, 2].
    """

    low: float = 1.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(
                f"guidance scales are drawn between low <= high, got {self.low} and {self.high}; "
                "the paper uses 1 and 2"
            )

    def sample(self, num: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw `num` scales, one per sample. (B,), float32."""
        return self.low + (self.high - self.low) * torch.rand(num, device=device)


def drop_labels(labels: Tensor, probability: float) -> Tensor:
    """Replace labels by `NULL_LABEL` at random, so that one network learns both models.

    Args:
        labels: class labels. (B,) int64.
        probability: probability of dropping a label; the paper's teachers have 0.1.

    Returns:
        Labels. (B,) int64.

    Source: arXiv 2410.11081, Table 5.
    """
    dropped = torch.rand(labels.shape, device=labels.device) < probability
    return labels.masked_fill(dropped, NULL_LABEL)


@dataclass(frozen=True)
class Guided:
    """F_s(u, t): a diffusion model made stronger, both branches in one call of twice the batch.

    Attributes:
        network: F(u, t, labels), trained with dropped labels.
        labels: classes. (B,) int64; None only without guidance.
        guidance: guidance scales s. (B,), or None for the plain model, in one plain call.

    Raises:
        ValueError: if there are no labels to guide towards, or a condition is no tensor.
    """

    network: Callable[..., Tensor]
    labels: Tensor | None = None
    guidance: Tensor | None = None

    def __post_init__(self) -> None:
        check_conditions(labels=self.labels, guidance=self.guidance)
        if self.guidance is not None and self.labels is None:
            raise ValueError(
                "guidance leads towards a class, but the data have no labels; train without "
                "guidance"
            )

    def __call__(self, u: Tensor, t: Tensor) -> Tensor:
        """Evaluate the guided model.

        Args:
            u: x_t / sigma_data. (B, ...), unit variance.
            t: times. (B,), radians.

        Returns:
            F_s. (B, ...), unit variance, float32 or wider.
        """
        labels, s = self.labels, self.guidance
        if s is None:
            return at_least_float32(self.network(u, t, labels))
        assert labels is not None
        both = torch.cat([labels, torch.full_like(labels, NULL_LABEL)])
        F = at_least_float32(self.network(torch.cat([u, u]), torch.cat([t, t]), both))
        F_class, F_none = F.chunk(2)
        return F_none + expand_time(s, u).to(F.dtype) * (F_class - F_none)
