# SPDX-License-Identifier: Apache-2.0
r"""Blocks of DDPM++, with adaptive double normalization in place of its additive embedding.

    h = conv1(resample(silu(norm1(x))))
    h = conv2(dropout(silu(double_norm(h, emb))))
    y = sqrt(1/2) (skip(resample(x)) + h);    with attention then  y = sqrt(1/2) (y + attend(y))

or with the norms of published networks in place of double_norm.

Resampling is by the box filter: the mean of four pixels down, a pixel four times up. The last
layer of every branch starts at zero; what goes into a pixel norm does not. Attention to a text is
added to that, y + attend(y, text): not scaled, it changes nothing at the start.
Source: Song et al., arXiv 2011.13456, Appendix H, in the form of Karras et al., arXiv 2206.00364,
Table 1 and Appendix F; the norm: arXiv 2410.11081, Section 4.1.
Axes: B batch, C channels, H and W pixels, L = H W tokens.
"""

import math
from typing import Literal

from torch import Tensor, nn

from scm_lightning.autodiff import attention
from scm_lightning.networks.cross_attention import CrossAttention
from scm_lightning.networks.norms import AdaptiveDoubleNorm, AdditiveNorm

SKIP_SCALE = math.sqrt(0.5)
"""Factor that keeps the variance of a sum of two."""
ATTENTION_GAIN = math.sqrt(0.2)
"""Factor of the first weights of queries, keys and values, beside Glorot's."""
Resampling = Literal["none", "down", "up"]
Norm = Literal["double", "affine_double", "additive"]


def conditional_norm(norm: Norm, num_channels: int, emb_channels: int) -> nn.Module:
    """Norm of activations (B, C, H, W) under an embedding (B, emb_channels).

    Raises:
        ValueError: if the norm is unknown.
    """
    groups = num_groups(num_channels)
    if norm == "additive":
        return AdditiveNorm(num_channels, emb_channels, groups)
    if norm not in ("double", "affine_double"):
        raise ValueError(
            f"norm must be double (the paper's), affine_double or additive, got {norm}; set it to "
            "one of these"
        )
    return AdaptiveDoubleNorm(num_channels, emb_channels, groups, affine=norm == "affine_double")


def num_groups(num_channels: int) -> int:
    """Groups of a group norm: at most 32, of at least 4 channels each, that divide the channels."""
    return max(n for n in range(1, 33) if num_channels % n == 0 and num_channels >= 4 * n)


def group_norm(num_channels: int) -> nn.GroupNorm:
    """Group norm with weights of its own."""
    return nn.GroupNorm(num_groups(num_channels), num_channels, eps=1e-6)


def initialize(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> None:
    """Set the weights uniformly after Glorot and Bengio, times `gain`, and the biases to zero."""
    nn.init.xavier_uniform_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def convolution(in_channels: int, out_channels: int, size: int = 3, gain: float = 1.0) -> nn.Conv2d:
    """Convolution that keeps the pixels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        size: side of the kernel, odd. Pixels.
        gain: factor of the first weights; 0 for a branch that adds nothing at the start.
    """
    layer = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
    initialize(layer, gain)
    return layer


class PixelAttention(nn.Module):
    """Self-attention among all pixels, with one head over all channels, on a residual.

    Args:
        num_channels: channels C.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.norm = group_norm(num_channels)
        self.qkv = nn.Linear(num_channels, 3 * num_channels)
        self.out = nn.Linear(num_channels, num_channels)
        initialize(self.qkv, ATTENTION_GAIN)
        initialize(self.out, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)  # (B, 1, L, C) each
        y = self.out(attention(q, k, v).squeeze(1)).transpose(1, 2).reshape(x.shape)
        return (x + y) * SKIP_SCALE  # type: ignore[no-any-return]


class PixelCrossAttention(nn.Module):
    """Attention of all pixels to a text, with heads of about 64 channels, on a residual.

    Args:
        num_channels: channels C.
        token_channels: channels of the tokens.
    """

    def __init__(self, num_channels: int, token_channels: int) -> None:
        super().__init__()
        at_most = max(1, num_channels // 64)
        num_heads = max(n for n in range(1, at_most + 1) if num_channels % n == 0)
        self.norm = group_norm(num_channels)
        self.attention = CrossAttention(num_channels, num_heads, token_channels)

    def forward(self, x: Tensor, *text: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W); `text` are tokens and mask of `TextTokens`."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        y = self.attention(pixels, *text)
        return x + y.transpose(1, 2).reshape(x.shape)  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two convolutions on a residual, with resampling inside and attention behind.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        emb_channels: channels of the embedding.
        dropout: probability of dropping an activation before the second convolution.
        resampling: "down" halves the sides of the image, "up" doubles them.
        with_attention: whether the pixels of the result attend to each other.
        token_channels: channels of the tokens of a text that they then attend to; 0 for none.
        norm: kind of the norm that the embedding enters by.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        dropout: float,
        resampling: Resampling = "none",
        with_attention: bool = False,
        token_channels: int = 0,
        norm: Norm = "double",
    ) -> None:
        super().__init__()
        self.resampling = resampling
        self.norm1 = group_norm(in_channels)
        self.conv1 = convolution(in_channels, out_channels)
        self.norm2 = conditional_norm(norm, out_channels, emb_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(out_channels, out_channels, gain=0.0)
        same = in_channels == out_channels and resampling == "none"
        self.skip = nn.Identity() if same else convolution(in_channels, out_channels, size=1)
        self.attention = PixelAttention(out_channels) if with_attention else None
        with_text = with_attention and token_channels > 0
        self.cross_attention = (
            PixelCrossAttention(out_channels, token_channels) if with_text else None
        )

    def forward(self, x: Tensor, emb: Tensor, *text: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W), resampled.

        Args:
            x: activations. (B, in_channels, H, W).
            emb: conditions. (B, emb_channels), float32 or wider.
            text: tokens and mask of `TextTokens`, or nothing.
        """
        h = self.conv1(self._resample(nn.functional.silu(self.norm1(x))))
        h = self.conv2(self.dropout(nn.functional.silu(self.norm2(h, emb))))
        y = (self.skip(self._resample(x)) + h) * SKIP_SCALE
        y = y if self.attention is None else self.attention(y)
        if self.cross_attention is not None:
            y = self.cross_attention(y, *text)
        return y  # type: ignore[no-any-return]

    def _resample(self, x: Tensor) -> Tensor:
        """Resample by the box filter."""
        if self.resampling == "down":
            return nn.functional.avg_pool2d(x, 2)
        if self.resampling == "up":
            return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return x
