# SPDX-License-Identifier: Apache-2.0
"""Report of a training step on itself, for all that watch a run; a number for the log."""

from typing import TypedDict

import torch
from torch import Tensor


class StepOutput(TypedDict, total=False):
    """Values that a training step returns, to Lightning and to callbacks.

    Attributes:
        loss: what is differentiated. ().
        t: times. (B,), radians.
        sample_loss: loss of every sample. (B,).
        tangent_norm: L2 norm of what every sample is pulled by; not of a diffusion model. (B,).
        logs: numbers for the log, by name. () each.
    """

    loss: Tensor
    t: Tensor
    sample_loss: Tensor
    tangent_norm: Tensor
    logs: dict[str, Tensor]


def exactly(value: float) -> Tensor:
    """A number for `log` that is not rounded to float32, and for which no device is waited. ()."""
    return torch.tensor(value, dtype=torch.float64)
