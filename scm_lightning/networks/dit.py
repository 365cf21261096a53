# SPDX-License-Identifier: Apache-2.0
"""A diffusion transformer, changed for consistency training.

Adaptive double normalization stands where the original's adaptive layer norm had a raw scale and
shift, queries and keys are normalised per head, and the time enters as it is. Attention is the one
that dual numbers know the derivative of.

Source: Peebles and Xie, arXiv 2212.09748, for the network; arXiv 2410.11081, Section 4.1, for the
normalization and the time; normalised queries and keys: SANA-Sprint, arXiv 2503.09641.
Axes: B batch, L tokens, C channels, H heads, D channels of a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scm_lightning.autodiff import attention
from scm_lightning.networks.cross_attention import CrossAttention, TextTokens, check_text
from scm_lightning.networks.embeddings import Conditioning, condition_names
from scm_lightning.networks.norms import AdaptiveDoubleNorm
from scm_lightning.networks.shapes import check_data_shape, checked_shape, with_image
from scm_lightning.networks.time_embedding import PositionalEmbedding, TimeEmbedding


class SelfAttention(nn.Module):
    """Multi-head self-attention with normalised queries and keys.

    Args:
        num_channels: channels C.
        num_heads: heads H, a divisor of C.
    """

    def __init__(self, num_channels: int, num_heads: int) -> None:
        super().__init__()
        if num_channels % num_heads:
            raise ValueError(
                f"the number of heads must divide the channels: got {num_heads} heads for "
                f"{num_channels} channels"
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(num_channels, 3 * num_channels)
        self.out = nn.Linear(num_channels, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, C) to (B, L, C)."""
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, L, D) each
        size = q.shape[-1:]
        q, k = nn.functional.rms_norm(q, size), nn.functional.rms_norm(k, size)
        y = attention(q, k.to(q.dtype), v.to(q.dtype))
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class DiTBlock(nn.Module):
    """Attention and a two-layer perceptron, each behind a double norm and on a residual.

    Args:
        num_channels: channels C.
        num_heads: heads H.
        emb_channels: channels of the embedding.
        dropout: probability of dropping an activation of the perceptron.
        with_text: whether the patches attend to a text too, between the two.
    """

    def __init__(
        self,
        num_channels: int,
        num_heads: int,
        emb_channels: int,
        dropout: float,
        with_text: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = AdaptiveDoubleNorm(num_channels, emb_channels, tokens=True)
        self.attention = SelfAttention(num_channels, num_heads)
        self.norm2 = AdaptiveDoubleNorm(num_channels, emb_channels, tokens=True)
        self.inner = nn.Linear(num_channels, 4 * num_channels)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(4 * num_channels, num_channels)
        self.cross_attention = (
            CrossAttention(num_channels, num_heads, num_channels) if with_text else None
        )

    def forward(self, x: Tensor, emb: Tensor, *text: Tensor) -> Tensor:
        """Map (B, L, C) to (B, L, C); `text` are tokens and mask of `TextTokens`, or nothing."""
        x = x + self.attention(self.norm1(x, emb))
        if self.cross_attention is not None:
            x = x + self.cross_attention(x, *text)
        y = nn.functional.gelu(self.inner(self.norm2(x, emb)), approximate="tanh")
        return x + self.outer(self.dropout(y))  # type: ignore[no-any-return]


class DiT(nn.Module):
    """F(u, t, labels, guidance, t_end, text, image) on images cut into patches.

    Args:
        data_shape: shape of one image, (channels, height, width).
        patch_size: side of a patch, a divisor of height and width. Pixels.
        model_channels: channels C.
        num_blocks: transformer blocks.
        num_heads: heads H, a divisor of C.
        num_classes: number of classes; 0 for a network without labels.
        guided: whether the network takes a guidance scale.
        two_times: whether the network takes the time that its flow map leads to.
        dropout: probability of dropping an activation inside a block.
        time_embedding: how the network sees the times.
        text_channels: features D of the tokens of a text that the patches attend to; 0 for none.
        image_channels: channels C' of an image that the network is given; 0 for none.

    Attributes:
        condition_names: the conditions that the network is called with by name.

    Raises:
        ValueError: if the patches do not tile the image or the heads do not divide the channels.
    """

    places: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        patch_size: int = 2,
        model_channels: int = 256,
        num_blocks: int = 8,
        num_heads: int = 4,
        num_classes: int = 0,
        guided: bool = False,
        two_times: bool = False,
        dropout: float = 0.0,
        time_embedding: TimeEmbedding = TimeEmbedding(),
        text_channels: int = 0,
        image_channels: int = 0,
    ) -> None:
        super().__init__()
        self.data_shape = checked_shape(data_shape, model_channels, num_blocks)
        self.patch_size = patch_size
        if len(self.data_shape) != 3 or any(size % patch_size for size in self.data_shape[1:]):
            raise ValueError(
                f"a DiT takes images (C, H, W) with H and W divisible by patch_size {patch_size}, "
                f"got {self.data_shape}; use another patch_size"
            )
        num_channels, area = self.data_shape[0], patch_size**2
        rows, columns = (size // patch_size for size in self.data_shape[1:])
        emb = model_channels
        self.conditioning = Conditioning(emb, num_classes, guided, two_times, time_embedding)
        self.input = nn.Linear((num_channels + image_channels) * area, model_channels)
        self.register_buffer("places", _places(rows, columns, model_channels), persistent=False)
        self.blocks = nn.ModuleList(
            DiTBlock(model_channels, num_heads, emb, dropout, text_channels > 0)
            for _ in range(num_blocks)
        )
        self.output_norm = AdaptiveDoubleNorm(model_channels, emb, tokens=True)
        self.output = nn.Linear(model_channels, num_channels * area)
        nn.init.zeros_(self.output.weight)
        self.text_channels, self.image_channels = text_channels, image_channels
        self.text = TextTokens(text_channels, model_channels, emb) if text_channels else None
        self.condition_names = condition_names(text_channels, image_channels)

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        t_end: Tensor | None = None,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """Evaluate F.

        Args:
            u: x_t / sigma_data. (B, *data_shape), unit variance.
            t: times. (B,), radians.
            labels: class labels, NULL_LABEL for no class. (B,) int64, or None for no class.
            guidance: guidance scales. (B,), or None.
            t_end: times that the flow map leads to. (B,), radians, or None.
            text: tokens of a text, constant in u and t. (B, L, text_channels), or None.
            text_mask: which of them there are. (B, L), bool, or None for all.
            image: what is given, constant in u and t. (B, C', H, W), or None.

        Returns:
            F. (B, *data_shape), unit variance.

        Raises:
            ValueError: if an image has another shape than `data_shape`, or a condition comes that
                the network was built without, or one is missing.
        """
        check_data_shape(self, u, self.data_shape)
        check_text(self.text_channels, text, text_mask, len(u))
        tokens, pooled = [], None
        if self.text is not None:
            *tokens, pooled = self.text(text, text_mask)
        emb = self.conditioning(t, labels, guidance, t_end, added=pooled)
        given = with_image(u, image, self.image_channels)
        patches = nn.functional.pixel_unshuffle(given, self.patch_size)
        h = patches.flatten(2).transpose(1, 2)  # (B, L, elements of a patch)
        h = self.input(h.to(self.input.weight.dtype))
        h = h + self.places.to(h.dtype)
        for block in self.blocks:
            h = block(h, emb, *tokens)
        F: Tensor = self.output(self.output_norm(h, emb)).transpose(1, 2)
        F = F.reshape(*F.shape[:2], *patches.shape[2:])
        return nn.functional.pixel_shuffle(F, self.patch_size)


def _places(rows: int, columns: int, num_channels: int) -> Tensor:
    """Positional embedding of row and column, half the channels each. (L, C)."""
    embed = PositionalEmbedding(num_channels // 2)
    row = embed(torch.arange(rows).float()).repeat_interleave(columns, dim=0)
    column = embed(torch.arange(columns).float()).repeat(rows, 1)
    return torch.cat([row, column], dim=1)
