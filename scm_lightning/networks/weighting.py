# SPDX-License-Identifier: Apache-2.0
r"""The adaptive weighting head w_phi(t), trained by the loss itself.

    e^{w*(t)} E ||F - F^- - g||^2 / D = 1     at its optimum

With a unit-norm g that is w* = log D; the head therefore learns what is left beside that constant,
and starts at zero. Started at w = 0 instead, it would spend the run getting there.
Source: arXiv 2410.11081, Section 4.2; features as in EDM2's `logvar` head (opposite sign).
"""

from torch import Tensor, nn

from scm_lightning.networks.embeddings import PreciseLinear
from scm_lightning.networks.time_embedding import PositionalEmbedding


class WeightingHead(nn.Module):
    """One linear layer on a positional embedding of t, zero at the start.

    Args:
        num_channels: channels of the embedding.
    """

    def __init__(self, num_channels: int = 128) -> None:
        super().__init__()
        self.position = PositionalEmbedding(num_channels)
        self.linear = PreciseLinear(num_channels, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Tensor) -> Tensor:
        """Log weight beside its constant part. (B,) radians to (B,), float32 or wider."""
        weight: Tensor = self.linear(self.position(t)).squeeze(1)
        return weight


def check_head(weighting: str, weighting_lr: float | None) -> None:
    """Refuse a learning rate for a head that is not trained.

    Args:
        weighting: "learned" or "none".
        weighting_lr: learning rate of the head; None for the network's.

    Raises:
        ValueError: if there is one for none.
    """
    if weighting == "none" and weighting_lr is not None:
        raise ValueError(
            f"weighting_lr is the rate of a learned weighting, got {weighting_lr} with weighting "
            "none; set it to null, or weighting to learned"
        )
