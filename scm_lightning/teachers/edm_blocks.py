# SPDX-License-Identifier: Apache-2.0
r"""Blocks of NCSN++ and ADM as EDM published them, under their published names.

    h = conv0(silu(norm0(x)))
    h = silu(norm1(h + a))                  NCSN++, or
        silu(norm1(h) (1 + s) + b)          ADM, where a, or s and b, are affine(emb)
    y = c (skip(x) + conv1(h));    with attention then  y = c (y + attend(y))

c is sqrt(1/2) in NCSN++ and 1 in ADM; conv0 and skip begin with the resampling.
Source: Song et al., arXiv 2011.13456, Appendix H; Dhariwal and Nichol, arXiv 2105.05233; both as in
Karras et al., arXiv 2206.00364, Table 1 and Appendix F. Names: NVlabs/edm.
Axes: B batch, C channels, H and W pixels, L = H W tokens, D channels of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scm_lightning.networks.embeddings import PreciseLinear
from scm_lightning.networks.unet_blocks import Resampling


class Convolution(nn.Module):
    """Convolution behind a filter that halves or doubles the image.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        size: side of the kernel, odd; 0 for the filter alone. Pixels.
        resampling: "down" or "up"; "none" for no filter.
        taps: side of the filter. Pixels.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        resampling: Resampling = "none",
        taps: int = 2,
    ) -> None:
        super().__init__()
        self.resampling = resampling
        shape = (out_channels, in_channels, size, size)
        self.weight = nn.Parameter(torch.zeros(shape)) if size else None
        self.bias = nn.Parameter(torch.zeros(out_channels)) if size else None
        filtering = None if resampling == "none" else torch.zeros(1, 1, taps, taps)
        self.register_buffer("resample_filter", filtering)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W), resampled."""
        x = self.filtered(x)
        if self.weight is None:
            return x
        return nn.functional.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    def filtered(self, x: Tensor, padding: int | None = None) -> Tensor:
        """Filter every channel, and take every second pixel or add one behind each."""
        if self.resample_filter is None:
            return x
        kernel = self.resample_filter.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        padding = (kernel.shape[-1] - 1) // 2 if padding is None else padding
        if self.resampling == "down":
            return nn.functional.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])
        return nn.functional.conv_transpose2d(
            x, 4 * kernel, stride=2, padding=padding, groups=x.shape[1]
        )


class FilteredConvolution(Convolution):
    """Convolution before a filter that halves the image; what is outside of it is zero before."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H/2, W/2)."""
        assert self.weight is not None
        assert self.bias is not None
        assert self.resample_filter is not None
        outside = self.weight.shape[-1] // 2 + (self.resample_filter.shape[-1] - 1) // 2
        h = nn.functional.conv2d(x, self.weight, padding=outside)
        return self.filtered(h, padding=0) + self.bias[:, None, None]


@dataclass(frozen=True)
class Style:
    """Constants of a network's blocks.

    Attributes:
        scales: whether the embedding scales and shifts behind the norm, or is added before it.
        skip_scale: factor of a sum of two.
        head_channels: channels of a head of attention; 0 for a single head over all.
        taps: side of the filter. Pixels.
        eps: what the norms add to a variance.
        projects: whether a block that resamples has a convolution on its residual.
    """

    scales: bool
    skip_scale: float
    head_channels: int
    taps: int
    eps: float
    projects: bool

    def norm(self, num_channels: int) -> nn.GroupNorm:
        """Group norm of at most 32 groups, of at least 4 channels each."""
        return nn.GroupNorm(min(32, num_channels // 4), num_channels, self.eps)


class Block(nn.Module):
    """Two convolutions on a residual, with resampling inside and attention behind.

    Args:
        style: its constants.
        in_channels: channels of the input.
        out_channels: channels of the result.
        emb_channels: channels of the embedding.
        resampling: "down" halves the sides of the image, "up" doubles them.
        with_attention: whether the pixels of the result attend to each other.
    """

    def __init__(
        self,
        style: Style,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        resampling: Resampling,
        with_attention: bool,
    ) -> None:
        super().__init__()
        self.style = style
        self.norm0 = style.norm(in_channels)
        self.conv0 = Convolution(in_channels, out_channels, 3, resampling, style.taps)
        self.affine = PreciseLinear(emb_channels, out_channels * (2 if style.scales else 1))
        self.norm1 = style.norm(out_channels)
        self.conv1 = Convolution(out_channels, out_channels, 3)
        changed = in_channels != out_channels
        self.skip: nn.Module = nn.Identity()
        if changed or resampling != "none":
            size = 1 if changed or style.projects else 0
            self.skip = Convolution(in_channels, out_channels, size, resampling, style.taps)
        self.norm2 = style.norm(out_channels) if with_attention else None
        if with_attention:
            self.qkv = Convolution(out_channels, 3 * out_channels, 1)
            self.proj = Convolution(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) and (B, emb_channels) to (B, out_channels, H, W)."""
        h = self.conv0(nn.functional.silu(self.norm0(x)))
        condition = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.style.scales:
            scale, shift = condition.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + condition)
        y = (self.skip(x) + self.conv1(nn.functional.silu(h))) * self.style.skip_scale
        if self.norm2 is not None:
            y = (y + self._attend(self.norm2(y))) * self.style.skip_scale
        return y  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        """Attention among all pixels; q, k and v alternate row by row within a head."""
        channels = self.style.head_channels or x.shape[1]
        heads = self.qkv(x).reshape(len(x), -1, channels, 3, x[0, 0].numel())
        q, k, v = heads.transpose(2, 4).unbind(3)  # (B, heads, L, D) each
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.mT.reshape(x.shape))  # type: ignore[no-any-return]
