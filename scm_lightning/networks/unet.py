# SPDX-License-Identifier: Apache-2.0
"""A small class-conditional U-Net of convolutions, for images of a few pixels.

Axes: B batch, C channels, H and W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scm_lightning.networks.embeddings import Conditioning
from scm_lightning.networks.norms import AdaptiveDoubleNorm
from scm_lightning.networks.shapes import check_data_shape


class ResidualBlock(nn.Module):
    """Two convolutions with double norms, and a skip connection.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        emb_channels: channels of the embedding.
        dropout: probability of dropping an activation before the second convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, emb_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = AdaptiveDoubleNorm(in_channels, emb_channels, _num_groups(in_channels))
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = AdaptiveDoubleNorm(out_channels, emb_channels, _num_groups(out_channels))
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        h = self.conv1(nn.functional.silu(self.norm1(x, emb)))
        h = self.conv2(self.dropout(nn.functional.silu(self.norm2(h, emb))))
        # sqrt(1/2) keeps the variance of a sum of two, as DDPM++ does.
        return (self.skip(x) + h) * 0.5**0.5  # type: ignore[no-any-return]


class UNet(nn.Module):
    """F(u, t, labels, guidance) on images.

    Args:
        data_shape: shape of one image, (C, H, W).
        model_channels: channels of the first level.
        channel_mult: channels of every level, as multiples of `model_channels`; every level after
            the first has half the pixels.
        num_blocks: residual blocks per level on the way down, one more on the way up.
        num_classes: number of classes; 0 for a network without labels.
        guided: whether the network takes a guidance scale.
        dropout: probability of dropping an activation inside a block.

    Raises:
        ValueError: if the pixels cannot be halved as often as there are levels.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        model_channels: int = 32,
        channel_mult: Sequence[int] = (1, 2),
        num_blocks: int = 1,
        num_classes: int = 0,
        guided: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)
        factor = 2 ** (len(channel_mult) - 1)
        if len(self.data_shape) != 3 or any(size % factor for size in self.data_shape[1:]):
            raise ValueError(
                f"a U-Net of {len(channel_mult)} levels takes images (C, H, W) with H and W "
                f"divisible by {factor}, got {self.data_shape}; use fewer levels"
            )
        image_channels = self.data_shape[0]
        emb = 4 * model_channels
        widths = [model_channels * mult for mult in channel_mult]
        self.conditioning = Conditioning(emb, num_classes, guided)
        self.input = nn.Conv2d(image_channels, model_channels, 3, padding=1)
        skips = [width := model_channels]
        self.down = nn.ModuleList()
        for index, level in enumerate(widths):
            if index:
                self.down.append(nn.AvgPool2d(2))
            for _ in range(num_blocks):
                self.down.append(ResidualBlock(width, level, emb, dropout))
                skips.append(width := level)
        self.middle = ResidualBlock(width, width, emb, dropout)
        self.up = nn.ModuleList()
        for index, level in reversed(list(enumerate(widths))):
            for _ in range(num_blocks + (index == 0)):
                self.up.append(ResidualBlock(width + skips.pop(), level, emb, dropout))
                width = level
            if index:
                self.up.append(nn.Upsample(scale_factor=2, mode="nearest"))
        self.output_norm = AdaptiveDoubleNorm(width, emb, _num_groups(width))
        self.output = nn.Conv2d(width, image_channels, 3, padding=1)
        nn.init.zeros_(self.output.weight)

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Evaluate F.

        Args:
            u: x_t / sigma_data. (B, *data_shape), unit variance.
            t: times. (B,), radians.
            labels: class labels. (B,) int64, or None for no class.
            guidance: guidance scales. (B,), or None.

        Returns:
            F. (B, *data_shape), unit variance.

        Raises:
            ValueError: if an image has another shape than `data_shape`.
        """
        check_data_shape(self, u, self.data_shape)
        emb = self.conditioning(t, labels, guidance)
        h = self.input(u.to(self.input.weight.dtype))
        skips = [h]
        for layer in self.down:
            if isinstance(layer, ResidualBlock):
                skips.append(h := layer(h, emb))
            else:
                h = layer(h)
        h = self.middle(h, emb)
        for layer in self.up:
            if isinstance(layer, ResidualBlock):
                h = layer(torch.cat([h, skips.pop()], dim=1), emb)
            else:
                h = layer(h)
        F: Tensor = self.output(nn.functional.silu(self.output_norm(h, emb)))
        return F


def _num_groups(num_channels: int) -> int:
    """Groups of about 4 channels or more, at most 32, that divide the channels."""
    return max(n for n in range(1, 33) if num_channels % n == 0 and num_channels >= 4 * n)
