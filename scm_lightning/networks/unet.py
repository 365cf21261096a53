# SPDX-License-Identifier: Apache-2.0
"""DDPM++, the U-Net of the paper's CIFAR-10 models, with adaptive double normalization.

Level i has images of the data's size over 2^i. Down, a level begins with a block that halves the
image, and every block's result is kept; up, it begins with one that doubles it, and takes the kept
results of its level, one per block. Attention is in every block down, in the last one up and in the
middle. The default arguments are the paper's: 60,049,667 parameters. DDPM++ has 55,732,739: of its
33 blocks each has one linear layer of the embedding, where double norm has two (4.3 M more), and a
norm with weights of its own behind it. Augmentation labels add to the features of t, as EDM's do.

Source: arXiv 2410.11081, Appendix G; Song et al., arXiv 2011.13456, Appendix H; Karras et al.,
arXiv 2206.00364, Appendix F.
Axes: B batch, C channels, H and W pixels, A augmentation labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scm_lightning.networks.cross_attention import TextTokens, check_text
from scm_lightning.networks.embeddings import Conditioning, condition_names
from scm_lightning.networks.shapes import check_data_shape, check_levels, checked_shape, with_image
from scm_lightning.networks.time_embedding import TimeEmbedding
from scm_lightning.networks.unet_blocks import (
    Norm,
    Resampling,
    ResidualBlock,
    convolution,
    group_norm,
)

ATTENTION_PIXELS = (16,)
"""Sides of the paper's levels with attention."""


class UNet(nn.Module):
    """F(u, t, labels, guidance, t_end, augment, text, image) on images.

    Args:
        data_shape: shape of one image, (C, H, W).
        model_channels: channels of the features of t, and the unit of `channel_mult`; even.
        channel_mult: channels of every level, as multiples of `model_channels`.
        num_blocks: residual blocks per level on the way down, one more on the way up.
        attention_pixels: levels have attention whose images' longer side is among these. Pixels.
        dropout: probability of dropping an activation inside a block.
        num_classes: number of classes; 0 for a network without labels.
        guided: whether the network takes a guidance scale.
        two_times: whether the network takes the time that its flow map leads to.
        augment_channels: augmentation labels A that the network takes, 9 of EDM's pipeline; 0 for
            none.
        time_embedding: how the network sees the times.
        text_channels: features D of the tokens of a text, to which the pixels attend wherever they
            attend to each other; 0 for none.
        image_channels: channels C' of an image that the network is given; 0 for none.
        norm: norm that the embedding enters by: "double", the paper's; "affine_double", with
            weights and biases of the norm before scale and shift; "additive", DDPM++'s own. The
            last two are those of published networks.

    Attributes:
        condition_names: the conditions that the network is called with by name.

    Raises:
        ValueError: if the pixels cannot be halved as often as there are levels, no level has a size
            that is to attend, or the norm is unknown.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        num_blocks: int = 4,
        attention_pixels: Sequence[int] = ATTENTION_PIXELS,
        dropout: float = 0.13,
        num_classes: int = 0,
        guided: bool = False,
        two_times: bool = False,
        augment_channels: int = 0,
        time_embedding: TimeEmbedding = TimeEmbedding(),
        text_channels: int = 0,
        image_channels: int = 0,
        norm: Norm = "double",
    ) -> None:
        super().__init__()
        self.data_shape = checked_shape(data_shape, model_channels, num_blocks)
        factor = 2 ** (len(channel_mult) - 1)
        if len(self.data_shape) != 3 or any(size % factor for size in self.data_shape[1:]):
            raise ValueError(
                f"a U-Net of {len(channel_mult)} levels takes images (C, H, W) with H and W "
                f"divisible by {factor}, got {self.data_shape}; use fewer levels"
            )
        self.emb_channels = 4 * model_channels
        self.dropout, self.norm = dropout, norm
        self.conditioning = Conditioning(
            self.emb_channels,
            num_classes,
            guided,
            two_times,
            time_embedding,
            num_features=model_channels,
            augment_channels=augment_channels,
        )
        num_channels, *sides = self.data_shape
        widths = [model_channels * mult for mult in channel_mult]
        longer = [max(sides) // 2**level for level in range(len(widths))]
        if tuple(attention_pixels) != ATTENTION_PIXELS:  # not what nobody has asked for
            check_levels("attention_pixels", attention_pixels, longer)
        attend = [side in attention_pixels for side in longer]
        self.text_channels, self.image_channels = text_channels, image_channels
        self.token_channels = max(widths) if text_channels else 0
        self.condition_names = condition_names(text_channels, image_channels)
        self.input = convolution(num_channels + image_channels, model_channels)
        self.down, skips = self._encoder(model_channels, widths, attend, num_blocks)
        self.middle = nn.ModuleList(
            self._block(widths[-1], widths[-1], with_attention=first) for first in (True, False)
        )
        self.up = self._decoder(skips, widths, attend, num_blocks)
        self.output_norm = group_norm(widths[0])
        self.output = convolution(widths[0], num_channels, gain=0.0)
        emb = self.emb_channels
        self.text = TextTokens(text_channels, max(widths), emb) if text_channels else None

    def _encoder(
        self, width: int, widths: list[int], attend: list[bool], num_blocks: int
    ) -> tuple[nn.ModuleList, list[int]]:
        """Blocks down, and the channels of everything that is kept."""
        blocks, skips = nn.ModuleList(), [width]
        for level, out in enumerate(widths):
            if level:
                blocks.append(self._block(width, width, resampling="down"))
                skips.append(width)
            for _ in range(num_blocks):
                blocks.append(self._block(width, out, with_attention=attend[level]))
                skips.append(width := out)
        return blocks, skips

    def _decoder(
        self, skips: list[int], widths: list[int], attend: list[bool], num_blocks: int
    ) -> nn.ModuleList:
        """Blocks up."""
        blocks, width = nn.ModuleList(), widths[-1]
        for level, out in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                blocks.append(self._block(width, width, resampling="up"))
            for index in range(num_blocks + 1):
                last = index == num_blocks
                blocks.append(
                    self._block(width + skips.pop(), out, with_attention=last and attend[level])
                )
                width = out
        assert not skips
        return blocks

    def _block(
        self,
        width: int,
        out: int,
        resampling: Resampling = "none",
        with_attention: bool = False,
    ) -> ResidualBlock:
        return ResidualBlock(
            width,
            out,
            self.emb_channels,
            self.dropout,
            resampling,
            with_attention,
            self.token_channels,
            self.norm,
        )

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        t_end: Tensor | None = None,
        augment: Tensor | None = None,
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
            augment: augmentation labels. (B, A), or None for images as they are.
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
        emb = self.conditioning(t, labels, guidance, t_end, augment, pooled)
        h = self.input(with_image(u, image, self.image_channels).to(self.input.weight.dtype))
        skips = [h]
        for block in self.down:
            skips.append(h := block(h, emb, *tokens))
        for block in self.middle:
            h = block(h, emb, *tokens)
        for block in self.up:
            if block.resampling != "up":
                h = torch.cat([h, skips.pop()], dim=1)
            h = block(h, emb, *tokens)
        F: Tensor = self.output(nn.functional.silu(self.output_norm(h)))
        return F
