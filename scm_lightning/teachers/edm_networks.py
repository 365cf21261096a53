# SPDX-License-Identifier: Apache-2.0
r"""NCSN++ and ADM as EDM published them, to be evaluated only, under their published names.

NCSN++ sees the image on every level again: a convolution of what the level before has seen, halved,
is added to the activations. Augmentation labels are those of images as they are: zeros, left out.
Source: Song et al., arXiv 2011.13456, Appendix H; Dhariwal and Nichol, arXiv 2105.05233; both as in
Karras et al., arXiv 2206.00364, Table 1 and Appendix F. Names: NVlabs/edm.
Axes: B batch, C channels, H and W pixels.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from scm_lightning.core import at_least_float32
from scm_lightning.networks.embeddings import PreciseLinear
from scm_lightning.networks.unet_blocks import SKIP_SCALE
from scm_lightning.teachers.edm_blocks import Block, Convolution, FilteredConvolution, Style
from scm_lightning.teachers.edm_layout import Layout, Place


class EDMNetwork(nn.Module, ABC):
    """F_net(x, c_noise, labels) of a published U-Net.

    Args:
        layout: its sizes.
    """

    STYLE: ClassVar[Style]

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.map_layer0 = PreciseLinear(layout.model_channels, layout.emb_channels)
        self.map_layer1 = PreciseLinear(layout.emb_channels, layout.emb_channels)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        side, channels = layout.sides[0], layout.first_channels
        self.first = f"{side}x{side}_conv"
        self.enc[self.first] = Convolution(layout.data_shape[0], channels, 3)
        kept = [channels]
        for place in layout.down():
            channels = self._add(place, channels, 0)
            kept.append(channels)
        for place in layout.middle():
            channels = self._add(place, channels, 0)
        for place in layout.up():
            channels = self._add(place, channels, 0 if place.resampling == "up" else kept.pop())

    def _add(self, place: Place, channels: int, kept: int) -> int:
        """Add a block, and count the channels of its result."""
        part, _, name = place.name.partition(".")
        width = place.width if place.resampling == "none" else channels
        (self.enc if part == "enc" else self.dec)[name] = Block(
            self.STYLE,
            channels + kept,
            width,
            self.layout.emb_channels,
            place.resampling,
            place.name in self.layout.attention,
        )
        return width

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: what EDM calls c_in x. (B, C, H, W).
            c_noise: what it sees of the noise. (B,).
            labels: classes. (B,) int64; None for zeros in place of a class.

        Returns:
            Its output. (B, C, H, W).
        """
        emb = self.embedding(c_noise, labels)
        h = self.enc[self.first](x)
        kept, seen = [h], x
        for place in self.layout.down():
            h = self.get_submodule(place.name)(h, emb)
            if place.resampling == "down":
                h = seen = self.with_image(h, seen, place)
            kept.append(h)
        for place in [*self.layout.middle(), *self.layout.up()]:
            block = self.get_submodule(place.name)
            if place.resampling == "none" and place not in self.layout.middle():
                h = torch.cat([h, kept.pop()], dim=1)
            h = block(h, emb)
        return self.end(h)

    @abstractmethod
    def embedding(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Embed noise and class. (B,) and (B,) to (B, emb_channels), float32 or wider."""

    @abstractmethod
    def end(self, h: Tensor) -> Tensor:
        """Map the last block's result to the output."""

    def with_image(self, h: Tensor, seen: Tensor, place: Place) -> Tensor:
        """Activations behind a block that halves them, with what the level before has seen."""
        return h


class NCSNpp(EDMNetwork):
    """NCSN++, the files named `-ve`, whatever their preconditioning.

    Args:
        layout: its sizes.
    """

    STYLE = Style(
        scales=False, skip_scale=SKIP_SCALE, head_channels=0, taps=4, eps=1e-6, projects=True
    )

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.map_noise = nn.Module()
        self.map_noise.register_buffer("freqs", torch.zeros(layout.model_channels // 2))
        if layout.num_classes:
            self.map_label = PreciseLinear(layout.num_classes, layout.model_channels)
        seen = layout.data_shape[0]
        for side, width in zip(
            layout.sides[1:], layout.widths, strict=False
        ):  # of the level before
            name = f"{side}x{side}_aux_residual"
            self.enc[name] = FilteredConvolution(seen, width, 3, "down", self.STYLE.taps)
            seen = width
        side = layout.sides[0]
        self.last = f"{side}x{side}_aux"
        self.dec[f"{self.last}_norm"] = self.STYLE.norm(layout.widths[0])
        self.dec[f"{self.last}_conv"] = Convolution(layout.widths[0], layout.out_channels, 3)

    def embedding(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """See `EDMNetwork`."""
        freqs = self.map_noise.get_buffer("freqs")
        angles = 2 * math.pi * at_least_float32(c_noise)[:, None] * freqs
        features = torch.cat([angles.sin(), angles.cos()], dim=1)
        if self.layout.num_classes:
            label = self.map_label
            features = features + label.bias
            if labels is not None:
                scale = math.sqrt(self.layout.num_classes)
                features = features + scale * label.weight.T[labels]
        emb = nn.functional.silu(self.map_layer0(features))
        return nn.functional.silu(self.map_layer1(emb))

    def with_image(self, h: Tensor, seen: Tensor, place: Place) -> Tensor:
        """See `EDMNetwork`."""
        again: Tensor = self.enc[f"{place.side}x{place.side}_aux_residual"](seen)
        return (h + again) * SKIP_SCALE

    def end(self, h: Tensor) -> Tensor:
        """See `EDMNetwork`."""
        h = nn.functional.silu(self.dec[f"{self.last}_norm"](h))
        return self.dec[f"{self.last}_conv"](h)  # type: ignore[no-any-return]


class ADM(EDMNetwork):
    """ADM, the file `edm-imagenet-64x64-cond-adm.pkl`.

    Args:
        layout: its sizes.
    """

    STYLE = Style(scales=True, skip_scale=1.0, head_channels=64, taps=2, eps=1e-5, projects=False)

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        if layout.num_classes:
            self.map_label = PreciseLinear(layout.num_classes, layout.emb_channels, bias=False)
        self.out_norm = self.STYLE.norm(layout.widths[0])
        self.out_conv = Convolution(layout.widths[0], layout.out_channels, 3)

    def embedding(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """See `EDMNetwork`."""
        t = at_least_float32(c_noise)
        half = self.layout.model_channels // 2
        exponents = torch.arange(half, device=t.device, dtype=t.dtype) / half
        angles = t[:, None] * 10000.0**-exponents
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        emb: Tensor = self.map_layer1(nn.functional.silu(self.map_layer0(features)))
        if self.layout.num_classes and labels is not None:
            emb = emb + self.map_label.weight.T[labels]
        return nn.functional.silu(emb)

    def end(self, h: Tensor) -> Tensor:
        """See `EDMNetwork`."""
        return self.out_conv(nn.functional.silu(self.out_norm(h)))  # type: ignore[no-any-return]
