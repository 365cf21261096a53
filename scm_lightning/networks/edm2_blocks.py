# SPDX-License-Identifier: Apache-2.0
r"""Blocks of the EDM2 U-Net, changed for consistency training.

    residual branch    y = conv2(dropout(mp_silu(norm(conv1(mp_silu(x)), emb))))
    norm(h, emb)       = normalize(h) * pnorm(s(emb))                              without shift
                       = (normalize(h) * pnorm(s(emb)) + pnorm(b(emb))) / sqrt(2)  with shift
                       =  normalize(h) * pnorm(s(emb)) + pnorm(b(emb))             unscaled
                       = h * (1 + gain s(emb))                                     gain
    block              x <- mp_sum(x, y, 0.3),  then x <- mp_sum(x, attention(x), 0.3)
    embedding          emb = mp_silu(mp_sum(time, class, 0.5)),  class = 0 for no class
    time               sqrt(2) features, of unit mean square, through a linear layer

The adaptive double normalization stands where EDM2 has a gain. The paper does not say how it sits
in this block; without shift the networks have the paper's parameter counts. "Unscaled" is that of
the public reimplementation edm2_sCM.
Source: EDM2, arXiv 2312.02696, configuration G; arXiv 2410.11081, Section 4.1.
Axes: B batch, C channels, H and W pixels, L = H W tokens, D channels of a head.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from scm_lightning.autodiff import attention
from scm_lightning.core import NULL_LABEL, at_least_float32
from scm_lightning.networks.classes import ClassConditioning
from scm_lightning.networks.embeddings import GuidanceEmbedding, check_conditions
from scm_lightning.networks.magnitude import MPConv2d, MPLinear, Normalizing, mp_silu, mp_sum
from scm_lightning.networks.time_embedding import TimeEmbedding

BALANCE = 0.3
"""Share of a branch in the sum with the trunk."""
LIMIT = 256.0
"""Largest magnitude of a block's output in float16."""


class MPConditioning(ClassConditioning):
    """Embedding of time, class and guidance scale that every block of the network reads.

    Args:
        num_features: channels of the features of a time.
        num_channels: channels of the result.
        num_classes: number of classes; 0 for a network without labels.
        guided: whether the network takes a guidance scale.
        two_times: whether the network takes the time that its flow map leads to.
        time_embedding: how the times are seen.
    """

    def __init__(
        self,
        num_features: int,
        num_channels: int,
        num_classes: int,
        guided: bool,
        two_times: bool,
        time_embedding: TimeEmbedding,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.time_embedding = time_embedding
        self.position = time_embedding.make_features(num_features)
        self.time = MPLinear(num_features, num_channels)
        self.label = MPLinear(num_classes, num_channels) if num_classes else None
        self.guidance = GuidanceEmbedding(num_features, num_channels) if guided else None
        self.end = GuidanceEmbedding(num_features, num_channels) if two_times else None

    def forward(
        self, t: Tensor, labels: Tensor | None, guidance: Tensor | None, t_end: Tensor | None
    ) -> Tensor:
        """Embed the conditions.

        Args:
            t: times. (B,), radians.
            labels: class labels, NULL_LABEL for no class. (B,) int64, or None for no class at all.
            guidance: guidance scales. (B,), or None.
            t_end: times that the flow map leads to. (B,), radians, or None.

        Returns:
            The embedding. (B, num_channels), unit variance, float32 or wider.

        Raises:
            ValueError: if a condition comes that the network was built without, or one is missing.
        """
        check_conditions(
            num_classes=self.num_classes,
            guided=self.guidance is not None,
            two_times=self.end is not None,
            labels=labels,
            guidance=guidance,
            t_end=t_end,
        )
        features = math.sqrt(2) * self.position(self.time_embedding.c_noise(t))
        emb: Tensor = self.time(features)
        if self.label is not None:
            # Without a class the time alone is scaled as if there were one.
            classes = 0.0 * emb if labels is None else self.label(self._one_hot(labels, emb.dtype))
            emb = mp_sum(emb, classes, 0.5)
        if self.guidance is not None and guidance is not None:
            emb = emb + self.guidance(guidance)
        if self.end is not None and t_end is not None:
            emb = emb + self.end(t_end)
        return mp_silu(emb)

    def _one_hot(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Unit mean square over the classes; zero for NULL_LABEL. (B,) to (B, num_classes)."""
        known = labels != NULL_LABEL
        one_hot = nn.functional.one_hot(torch.where(known, labels, 0), self.num_classes)
        return (one_hot * known[:, None]).to(dtype) * math.sqrt(self.num_classes)


class MPDoubleNorm(Normalizing):
    """Adaptive double normalization of every pixel, without a bias anywhere.

    Args:
        num_channels: channels C of the activations.
        emb_channels: channels of the embedding.
        shift: whether the embedding shifts the activations too.
    """

    balance = 0.5**0.5
    """Factor of the sum with a shift: unit variance again."""

    def __init__(self, num_channels: int, emb_channels: int, shift: bool = False) -> None:
        super().__init__()
        self.scale = MPLinear(emb_channels, num_channels)
        self.shift = MPLinear(emb_channels, num_channels) if shift else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W), of the type of `x`."""
        y = self.normalize(x) * self.normalize(self.scale(emb))[:, :, None, None]
        if self.shift is not None:
            y = (y + self.normalize(self.shift(emb))[:, :, None, None]) * self.balance
        return y.to(x.dtype)


class UnscaledDoubleNorm(MPDoubleNorm):
    """Adaptive double normalization with a shift, of variance 2: edm2_sCM's.

    Args:
        num_channels: channels C of the activations.
        emb_channels: channels of the embedding.
    """

    balance = 1.0

    def __init__(self, num_channels: int, emb_channels: int) -> None:
        super().__init__(num_channels, emb_channels, shift=True)


class GainModulation(nn.Module):
    """EDM2's own modulation of activations that are not normalised: h * (1 + gain s(emb)).

    Args:
        num_channels: channels C of the activations.
        emb_channels: channels of the embedding.
    """

    def __init__(self, num_channels: int, emb_channels: int) -> None:
        super().__init__()
        self.linear = MPLinear(emb_channels, num_channels)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W), of the type of `x`."""
        scale: Tensor = 1 + at_least_float32(self.gain) * self.linear(emb)
        return x * scale[:, :, None, None].to(x.dtype)


class CosineAttention(Normalizing):
    """Multi-head self-attention among pixels; queries, keys and values normalised per head.

    Args:
        num_channels: channels C.
        num_heads: heads, a divisor of C.
    """

    def __init__(self, num_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = MPConv2d(num_channels, 3 * num_channels, 1)
        self.out = MPConv2d(num_channels, num_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        qkv = self.qkv(x)
        size = (qkv.shape[0], qkv.shape[2] * qkv.shape[3], 3, self.num_heads, -1)
        qkv = self.normalize(qkv.permute(0, 2, 3, 1).reshape(size), dim=-1).to(qkv.dtype)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, L, D) each
        y = attention(q, k, v).transpose(1, 2).reshape(x.shape[0], *x.shape[2:], -1)
        return self.out(y.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


class EDM2Block(Normalizing):
    """Resampling, a residual branch of two convolutions, and attention.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        emb_channels: channels of the embedding.
        side: "encoder" changes the channels first and normalises the trunk; "decoder" changes them
            last.
        resample: "down" halves height and width first, "up" doubles them.
        num_heads: heads of the attention; 0 for none.
        dropout: probability of dropping an activation before the second convolution.
        modulation: layer of (channels, emb_channels) by which the embedding acts.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        side: Literal["encoder", "decoder"],
        resample: Literal["keep", "down", "up"] = "keep",
        num_heads: int = 0,
        dropout: float = 0.0,
        modulation: Callable[[int, int], nn.Module] = MPDoubleNorm,
    ) -> None:
        super().__init__()
        self.encodes = side == "encoder"
        self.resample = {
            "keep": nn.Identity(),
            "down": nn.AvgPool2d(2),
            "up": nn.Upsample(scale_factor=2, mode="nearest"),
        }[resample]
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else MPConv2d(in_channels, out_channels, 1)
        self.conv1 = MPConv2d(out_channels if self.encodes else in_channels, out_channels, 3)
        self.norm = modulation(out_channels, emb_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = MPConv2d(out_channels, out_channels, 3)
        self.attention = CosineAttention(out_channels, num_heads) if num_heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        x = self.resample(x)
        if self.encodes:
            x = self.skip(x)
            x = self.normalize(x).to(x.dtype)
        y = mp_silu(self.norm(self.conv1(mp_silu(x)), emb))
        if self.training and self.dropout.p:
            # On ones of a fixed layout: forward mode would draw another mask for channels last.
            y = y * self.dropout(torch.ones(y.shape, dtype=y.dtype, device=y.device))
        x = mp_sum(x if self.encodes else self.skip(x), self.conv2(y), BALANCE)
        if self.attention is not None:
            x = mp_sum(x, self.attention(x), BALANCE)
        # Value and tangent are cut together; wider types need no limit, and pay nothing for it
        # (EDM2 cuts there too, far beyond what its trained networks reach).
        return x.clamp(-LIMIT, LIMIT) if x.dtype == torch.float16 else x
