# SPDX-License-Identifier: Apache-2.0
r"""Classifier-free guidance: a teacher made stronger, and the scale as an input of the student.

    F_s = F(u, t, none) + s (F(u, t, class) - F(u, t, none)),    s = 1 is the plain model

F is linear in the denoiser and in the velocity, so guiding F guides both. The student takes s as an
input, drawn per sample from U[1, 2], and then needs one call where the teacher needs two.
Source: arXiv 2410.11081, Section 5.3 and Table 5; Ho and Salimans, arXiv 2207.12598.
Axes: B batch, ... data axes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.core.conditions import NO_CONDITIONS, Conditions, check_conditions, joined
from scm_lightning.core.trigflow import at_least_float32, expand_time

ALL = "guidance"
"""Name of a single scale, that of all conditions together."""


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


@dataclass(frozen=True)
class Guided:
    """F_s(u, t): a diffusion model made stronger, all branches in one call of a larger batch.

    With one scale the two branches have all conditions and none. With a scale for each of several
    conditions, they are added one by one, in the order of their names here, to those that have no
    scale and stay:

        F_s = F_0 + sum_i s_i (F_i - F_(i-1)),    F_i has the first i of them

    Attributes:
        network: F(u, t, labels, **named), trained with dropped conditions.
        conditions: what is led to, and what stands for none of it.
        guidance: guidance scales s, (B,); or scales by the names of conditions, "labels" among
            them; or None for the plain model, in one plain call.

    Raises:
        ValueError: if there is nothing to guide towards, or a condition is no tensor.

    Source: one scale: Ho and Salimans, arXiv 2207.12598; one for each condition: Brooks et al.,
        arXiv 2211.09800, Section 3.2.1.
    """

    network: Callable[..., Tensor]
    conditions: Conditions = NO_CONDITIONS
    guidance: Tensor | Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        labels, named, _ = self.conditions
        check_conditions(labels=labels, **named)
        check_conditions(**self._scales())
        self.conditions.check_nulls()
        if self.guidance is not None and not self.conditions.names():
            raise ValueError(
                "guidance leads towards a class or another condition, but the data have neither "
                "labels nor conditions; train without guidance"
            )
        if isinstance(self.guidance, Mapping):
            self.conditions.check_names("guidance", self.guidance)

    def __call__(self, u: Tensor, t: Tensor) -> Tensor:
        """Evaluate the guided model.

        Args:
            u: x_t / sigma_data. (B, ...), unit variance.
            t: times. (B,), radians.

        Returns:
            F_s. (B, ...), unit variance, float32 or wider.
        """
        labels, named, _ = self.conditions
        if self.guidance is None:
            return at_least_float32(self.network(u, t, labels, **named))
        scales = self._scales()
        branches = self._branches([*scales])
        num = len(branches)
        given = joined(branches)
        F = self.network(torch.cat([u] * num), torch.cat([t] * num), given.labels, **given.named)
        *F_with, F_none = at_least_float32(F).chunk(num)
        F_with = F_with[::-1]
        F_guided = F_none
        for s, before, F_more in zip(scales.values(), [F_none, *F_with], F_with, strict=False):
            F_guided = F_guided + expand_time(s, u).to(F.dtype) * (F_more - before)
        return F_guided

    def _scales(self) -> dict[str, Tensor]:
        """Scales by what they are of."""
        if self.guidance is None:
            return {}
        return {**self.guidance} if isinstance(self.guidance, Mapping) else {ALL: self.guidance}

    def _branches(self, guided: list[str]) -> list[Conditions]:
        """Conditions of every branch, from all of the guided ones to none."""
        if guided == [ALL]:
            return [self.conditions, self.conditions.without(self.conditions.names())]
        return [self.conditions.without(guided[num:]) for num in range(len(guided), -1, -1)]
