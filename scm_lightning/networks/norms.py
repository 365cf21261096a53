# SPDX-License-Identifier: Apache-2.0
r"""Norms, and the adaptive double normalization that replaces AdaGN.

    y        = norm(x) * pnorm(s(emb)) + pnorm(b(emb))
    pnorm(a) = a / sqrt(mean over channels of a^2 + eps)

Without the pixel norm on scale and shift, consistency training diverges. pnorm has slope
1 / sqrt(eps) at zero, so what goes into it is never initialised to zero. DDPM++'s own norm is
norm(x + a(emb)), with weights and biases of the norm.
Source: arXiv 2410.11081, Section 4.1; pixel norm: Karras et al., arXiv 1710.10196, eps = 1e-8.
Axes: B batch, C channels, ... data axes.
"""

import torch
from torch import Tensor, nn

from scm_lightning.core import at_least_float32
from scm_lightning.networks.embeddings import PreciseLinear


def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Scale a vector of channels to unit mean square. (B, C) to (B, C)."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)


class AdaptiveDoubleNorm(nn.Module):
    """Norm of the activations, scaled and shifted by pixel-normalised conditions.

    Args:
        num_channels: channels C of the activations.
        emb_channels: channels of the embedding.
        num_groups: groups of the group norm, a divisor of C; 1 for a norm over all channels.
        tokens: whether the activations are (B, ..., C), every token with a norm of its own, instead
            of (B, C, ...), normalised over the data axes too.
        affine: whether the norm has weights and biases of its own, before scale and shift, as in
            some published networks; the paper's has none. Not for tokens.

    Raises:
        ValueError: if the groups do not divide the channels, or tokens have several or weights.
    """

    def __init__(
        self,
        num_channels: int,
        emb_channels: int,
        num_groups: int = 1,
        tokens: bool = False,
        affine: bool = False,
    ) -> None:
        super().__init__()
        if num_channels % num_groups or (tokens and (num_groups > 1 or affine)):
            raise ValueError(
                f"the number of groups must divide the channels: got {num_groups} groups for "
                f"{num_channels} channels; tokens take a single one, without weights"
            )
        self.tokens = tokens
        self.num_groups = num_groups
        self.scale = PreciseLinear(emb_channels, num_channels)
        self.shift = PreciseLinear(emb_channels, num_channels)
        nn.init.ones_(self.scale.bias)
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Normalise, scale and shift.

        Args:
            x: activations. (B, C, ...), or (B, ..., C) for tokens.
            emb: conditions. (B, emb_channels), float32 or wider.

        Returns:
            Activations of the type and shape of `x`, about unit variance.
        """
        if self.tokens:
            y = nn.functional.layer_norm(at_least_float32(x), x.shape[-1:], eps=1e-6)
            axes = (emb.shape[0], *[1] * (x.ndim - 2), -1)
        else:
            y = _group_norm(at_least_float32(x), self.num_groups, self.weight, self.bias)
            axes = (emb.shape[0], -1, *[1] * (x.ndim - 2))
        scale = pixel_norm(self.scale(emb)).reshape(axes)
        shift = pixel_norm(self.shift(emb)).reshape(axes)
        return (y * scale + shift).to(x.dtype)


class AdditiveNorm(nn.Module):
    """DDPM++'s own norm: group norm of the activations plus the conditions, with weights.

    Args:
        num_channels: channels C of the activations.
        emb_channels: channels of the embedding.
        num_groups: groups of the group norm, a divisor of C.

    Source: Song et al., arXiv 2011.13456, Appendix H, as in Karras et al., arXiv 2206.00364.
    """

    def __init__(self, num_channels: int, emb_channels: int, num_groups: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.added = PreciseLinear(emb_channels, num_channels)
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Add the conditions, (B, emb_channels), to activations (B, C, ...), and normalise."""
        added = self.added(emb).reshape(emb.shape[0], -1, *[1] * (x.ndim - 2))
        y = _group_norm(at_least_float32(x) + added, self.num_groups, self.weight, self.bias)
        return y.to(x.dtype)


def _group_norm(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Group norm in the type of `x`, whatever that of the weights."""
    if weight is not None and bias is not None:
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return nn.functional.group_norm(x, num_groups, weight, bias, eps=1e-6)
