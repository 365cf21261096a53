# SPDX-License-Identifier: Apache-2.0
"""Report of a training step on itself, for all that watch a run."""

from typing import TypedDict

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
