# SPDX-License-Identifier: Apache-2.0
"""A residual multi-layer perceptron: the smallest network with every part of the method.

Axes: B batch, D elements of one sample, C model channels.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from scm_lightning.networks.embeddings import Conditioning, condition_names
from scm_lightning.networks.norms import AdaptiveDoubleNorm
from scm_lightning.networks.shapes import check_data_shape, checked_shape, with_image
from scm_lightning.networks.time_embedding import TimeEmbedding


class MLPBlock(nn.Module):
    """Residual block: linear, double norm, SiLU, dropout, linear.

    Args:
        num_channels: channels C.
        emb_channels: channels of the embedding.
        dropout: probability of dropping an activation.
    """

    def __init__(self, num_channels: int, emb_channels: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(num_channels, num_channels)
        self.norm = AdaptiveDoubleNorm(num_channels, emb_channels)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(num_channels, num_channels)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """Map (B, C) to (B, C)."""
        y = nn.functional.silu(self.norm(self.inner(h), emb))
        return h + self.outer(self.dropout(y))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """F(u, t, labels, guidance, t_end, image) on flattened samples.

    Args:
        data_shape: shape of one sample, for example (1, 8, 8).
        model_channels: channels C of the hidden layers.
        num_blocks: residual blocks.
        emb_channels: channels of the embedding of time and class.
        num_classes: number of classes; 0 for a network without labels.
        guided: whether the network takes a guidance scale.
        two_times: whether the network takes the time that its flow map leads to.
        dropout: probability of dropping an activation inside a block.
        time_embedding: how the network sees the times.
        image_channels: channels C' of an image that the network is given; 0 for none.

    Attributes:
        condition_names: the conditions that the network is called with by name.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        model_channels: int = 256,
        num_blocks: int = 4,
        emb_channels: int = 128,
        num_classes: int = 0,
        guided: bool = False,
        two_times: bool = False,
        dropout: float = 0.0,
        time_embedding: TimeEmbedding = TimeEmbedding(),
        image_channels: int = 0,
    ) -> None:
        super().__init__()
        self.data_shape = checked_shape(data_shape, model_channels, num_blocks)
        self.image_channels = image_channels
        self.condition_names = condition_names(0, image_channels)
        num_channels, *size = self.data_shape
        num_elements, num_given = (
            math.prod((each, *size)) for each in (num_channels, num_channels + image_channels)
        )
        self.conditioning = Conditioning(
            emb_channels, num_classes, guided, two_times, time_embedding
        )
        self.input = nn.Linear(num_given, model_channels)
        self.blocks = nn.ModuleList(
            MLPBlock(model_channels, emb_channels, dropout) for _ in range(num_blocks)
        )
        self.output_norm = AdaptiveDoubleNorm(model_channels, emb_channels)
        self.output = nn.Linear(model_channels, num_elements)
        nn.init.zeros_(self.output.weight)

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        t_end: Tensor | None = None,
        *,
        image: Tensor | None = None,
    ) -> Tensor:
        """Evaluate F.

        Args:
            u: x_t / sigma_data. (B, *data_shape), unit variance.
            t: times. (B,), radians.
            labels: class labels, NULL_LABEL for no class. (B,) int64, or None for no class.
            guidance: guidance scales. (B,), or None.
            t_end: times that the flow map leads to. (B,), radians, or None.
            image: what is given, constant in u and t. (B, C', H, W), or None.

        Returns:
            F. (B, *data_shape), unit variance.

        Raises:
            ValueError: if a sample has another shape than `data_shape`.
        """
        check_data_shape(self, u, self.data_shape)
        emb = self.conditioning(t, labels, guidance, t_end)
        given = with_image(u, image, self.image_channels)
        h = self.input(given.flatten(1).to(self.input.weight.dtype))
        for block in self.blocks:
            h = block(h, emb)
        h = nn.functional.silu(self.output_norm(h, emb))
        F: Tensor = self.output(h)
        return F.reshape(u.shape)
