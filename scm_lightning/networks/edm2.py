# SPDX-License-Identifier: Apache-2.0
r"""The EDM2 U-Net (configuration G), changed for consistency training.

    F(u, t) = out_gain * conv(decoder(encoder([u, 1])))

Every level after the first halves the pixels; the encoder's outputs are joined into the decoder.
All layers keep the magnitude of what goes through them. Changed are the embedding of t, which is
positional and of t itself, and the adaptive double normalization in every block; options bring back
EDM2's own, for its published weights. Weights are meant to be normalised after every optimizer
step: see `normalize_weights`.
Source: EDM2, arXiv 2312.02696, configuration G and Table 6; arXiv 2410.11081, Sections 4.1 and 5.
Axes: B batch, C channels, H and W pixels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from scm_lightning.core import at_least_float32
from scm_lightning.networks.edm2_blocks import (
    EDM2Block,
    GainModulation,
    MPConditioning,
    MPDoubleNorm,
    UnscaledDoubleNorm,
)
from scm_lightning.networks.magnitude import MPConv2d, edm2_normalize, mp_concat, take_norm
from scm_lightning.networks.shapes import check_data_shape, check_levels, checked_shape
from scm_lightning.networks.time_embedding import TimeEmbedding

EDM2_SIZES = {"XXS": 64, "XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
"""`model_channels` of EDM2's sizes; from S on the paper's: 280, 498, 778, 1119 and 1523 million
parameters on ImageNet 512 (arXiv 2410.11081, Table 5)."""
ATTENTION_PIXELS = (16, 8)
"""Sides of the paper's levels with attention."""


class EDM2UNet(nn.Module):
    """F(u, t, labels, guidance, t_end) on images or latents.

    Args:
        data_shape: shape of one image, (C, H, W).
        model_channels: channels of the first level; the paper's are `EDM2_SIZES`.
        channel_mult: channels of every level, as multiples of `model_channels`; every level after
            the first has half the pixels.
        num_blocks: residual blocks per level on the way down, one more on the way up.
        attention_pixels: levels whose longer side has one of these lengths attend; the middle of
            the network always does.
        channels_per_head: channels of an attention head, a divisor of the attending levels'.
        num_classes: number of classes; 0 for a network without labels.
        guided: whether the network takes a guidance scale.
        two_times: whether the network takes the time that its flow map leads to.
        dropout: probability of dropping an activation inside a block.
        dropout_pixels: only levels whose longer side is at most this drop activations.
        shift: whether the embedding shifts the activations of a block, besides scaling them. The
            paper's equation has a shift, its parameter counts leave no room for one.
        modulation: how the embedding acts in a block. "double" is the paper's double
            normalization; "unscaled" adds a shift that is not balanced by 1 / sqrt(2), edm2_sCM's;
            "gain" is EDM2's own, without any normalization.
        exact_norm: whether to normalise with EDM2's own constant beside the root, as its published
            weights expect; the default is smooth, and differs by 1e-4 in every layer.
        time_embedding: how the network sees the times.

    Raises:
        ValueError: if the pixels cannot be halved as often as there are levels, the heads do not
            divide the channels, no level has a size that is to attend or drop, or a shift is asked
            of another modulation than "double".
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attention_pixels: Sequence[int] = ATTENTION_PIXELS,
        channels_per_head: int = 64,
        num_classes: int = 0,
        guided: bool = False,
        two_times: bool = False,
        dropout: float = 0.0,
        dropout_pixels: int = 16,
        shift: bool = False,
        time_embedding: TimeEmbedding = TimeEmbedding(),
        modulation: Literal["double", "unscaled", "gain"] = "double",
        exact_norm: bool = False,
    ) -> None:
        super().__init__()
        self.data_shape = checked_shape(data_shape, model_channels, num_blocks)
        _check_levels(self.data_shape, len(channel_mult))
        widths = [model_channels * mult for mult in channel_mult]
        emb = max(widths)
        self.conditioning = MPConditioning(
            model_channels, emb, num_classes, guided, two_times, time_embedding
        )
        longer = max(self.data_shape[1:])
        sides = [longer // 2**level for level in range(len(widths))]
        if tuple(attention_pixels) != ATTENTION_PIXELS:  # not what nobody has asked for
            check_levels("attention_pixels", attention_pixels, sides)
        if dropout and dropout_pixels < min(sides):
            raise ValueError(
                f"dropout is at levels of dropout_pixels and below, got {dropout_pixels} for "
                f"levels of {', '.join(map(str, sides))}; raise it, or set dropout to 0"
            )
        heads = [
            _num_heads(width, channels_per_head) if side in attention_pixels else 0
            for width, side in zip(widths, sides, strict=True)
        ]
        rates = [dropout if side <= dropout_pixels else 0.0 for side in sides]
        levels = list(zip(widths, heads, rates, strict=True))
        norm = _modulation(modulation, shift)
        self.input = MPConv2d(self.data_shape[0] + 1, widths[0], 3)
        self.encoder = _encoder(levels, num_blocks, emb, norm)
        self.decoder, self.joins = _decoder(
            levels, num_blocks, emb, norm, _num_heads(widths[-1], channels_per_head)
        )
        self.output = MPConv2d(widths[0], self.data_shape[0], 3)
        self.out_gain = nn.Parameter(torch.zeros(1))
        if exact_norm:
            take_norm(self, edm2_normalize)

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        t_end: Tensor | None = None,
    ) -> Tensor:
        """Evaluate F.

        Args:
            u: x_t / sigma_data. (B, *data_shape), unit variance.
            t: times. (B,), radians.
            labels: class labels, NULL_LABEL for no class. (B,) int64, or None for no class.
            guidance: guidance scales. (B,), or None.
            t_end: times that the flow map leads to. (B,), radians, or None.

        Returns:
            F. (B, *data_shape), unit variance, float32 or wider.

        Raises:
            ValueError: if an image has another shape than `data_shape`, or a condition does not
                fit.
        """
        check_data_shape(self, u, self.data_shape)
        emb = self.conditioning(t, labels, guidance, t_end)
        x = u.to(self.input.weight.dtype)
        # A channel of ones stands for the biases that the layers do not have.
        ones = torch.ones((x.shape[0], 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
        x = self.input(torch.cat([x, ones], dim=1))
        skips = [x]
        for block in self.encoder:
            skips.append(x := block(x, emb))
        for block, joins in zip(self.decoder, self.joins, strict=True):
            x = block(mp_concat(x, skips.pop()) if joins else x, emb)
        return at_least_float32(self.output(x)) * at_least_float32(self.out_gain)


Level = tuple[int, int, float]
"""Channels, attention heads and dropout of a level."""
Modulation = Callable[[int, int], nn.Module]
"""Layer of (channels, emb_channels) by which the embedding acts."""


def _modulation(name: str, shift: bool) -> Modulation:
    """Kind of layer by its name."""
    if shift and name != "double":
        raise ValueError(
            f"shift belongs to modulation 'double', got it with {name!r}; leave it out: 'unscaled' "
            "has a shift of its own, 'gain' none"
        )
    layers: dict[str, Modulation] = {
        "double": partial(MPDoubleNorm, shift=shift),
        "unscaled": UnscaledDoubleNorm,
        "gain": GainModulation,
    }
    return layers[name]


def _encoder(levels: list[Level], num_blocks: int, emb: int, norm: Modulation) -> nn.ModuleList:
    """Blocks on the way down; the output of each is joined into the decoder."""
    blocks = nn.ModuleList()
    width = levels[0][0]
    for index, (channels, heads, dropout) in enumerate(levels):
        if index:
            blocks.append(
                EDM2Block(width, width, emb, "encoder", "down", dropout=dropout, modulation=norm)
            )
        for _ in range(num_blocks):
            blocks.append(EDM2Block(width, channels, emb, "encoder", "keep", heads, dropout, norm))
            width = channels
    return blocks


def _decoder(
    levels: list[Level], num_blocks: int, emb: int, norm: Modulation, middle_heads: int
) -> tuple[nn.ModuleList, list[bool]]:
    """Blocks on the way up, and whether an output of the encoder is joined to a block's input."""
    # What the encoder left: its input layer's output, then a level's blocks and the one going down.
    skips = [levels[0][0]]
    for index, (channels, _, _) in enumerate(levels):
        skips += [skips[-1]] * bool(index) + [channels] * num_blocks
    blocks, joins = nn.ModuleList(), []
    width = levels[-1][0]
    for index, (channels, heads, dropout) in reversed(list(enumerate(levels))):
        if index == len(levels) - 1:
            for middle in (middle_heads, 0):
                blocks.append(
                    EDM2Block(width, width, emb, "decoder", "keep", middle, dropout, norm)
                )
                joins.append(False)
        else:
            blocks.append(EDM2Block(width, width, emb, "decoder", "up", 0, dropout, norm))
            joins.append(False)
        for _ in range(num_blocks + 1):
            joined = width + skips.pop()
            blocks.append(EDM2Block(joined, channels, emb, "decoder", "keep", heads, dropout, norm))
            joins.append(True)
            width = channels
    return blocks, joins


def _check_levels(data_shape: tuple[int, ...], num_levels: int) -> None:
    """Refuse images that cannot be halved as often as there are levels."""
    factor = 2 ** (num_levels - 1)
    if len(data_shape) != 3 or any(size % factor for size in data_shape[1:]):
        raise ValueError(
            f"an EDM2UNet of {num_levels} levels takes images (C, H, W) with H and W divisible by "
            f"{factor}, got {data_shape}; use fewer levels"
        )


def _num_heads(channels: int, channels_per_head: int) -> int:
    """Heads of an attending level.

    Raises:
        ValueError: if the channels are no multiple of a head's.
    """
    if channels % channels_per_head:
        raise ValueError(
            "an attending level's channels must be a multiple of channels_per_head, got "
            f"{channels} and {channels_per_head}; change model_channels or channels_per_head"
        )
    return channels // channels_per_head
