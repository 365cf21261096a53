# SPDX-License-Identifier: Apache-2.0
r"""What a network knows beside its image: the time, the class, the guidance scale.

    c_noise(t) = t in radians; emb = (cos(t f_i), sin(t f_i)), f_i = 10000^(-i / (n/2 - 1))

Neither 1000 t nor log sigma: both make the derivative in t large, and log sigma's is infinite at
pi/2. Everything here runs in float32 or wider, whatever the trainer's precision, since an error in
the embedding of t is multiplied in the tangent.
Source: arXiv 2410.11081, Sections 4.1 and 5.2.
Axes: B batch, C channels of the embedding.
"""

import torch
from torch import Tensor, nn

from scm_lightning.core import at_least_float32


class PreciseLinear(nn.Linear):
    """A linear layer computed in float32 or wider, under autocast and with half weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        dtype = torch.promote_types(at_least_float32(x).dtype, self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x.to(dtype), self.weight.to(dtype), bias)


class PositionalEmbedding(nn.Module):
    """Plain positional embedding of a scalar, highest frequency 1.

    The paper's "Fourier scale of about 0.02" is this embedding, not a further factor on t.

    Args:
        num_channels: channels C of the result, even and at least 4.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        if num_channels < 4 or num_channels % 2:
            raise ValueError(
                f"a positional embedding needs an even number of at least 4 channels, got "
                f"{num_channels}"
            )
        self.num_channels = num_channels

    def forward(self, t: Tensor) -> Tensor:
        """Embed one scalar per sample. (B,) to (B, C)."""
        t = at_least_float32(t)
        half = self.num_channels // 2
        exponents = torch.arange(half, device=t.device, dtype=t.dtype) / (half - 1)
        angles = t[:, None] * 10000.0**-exponents
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Conditioning(nn.Module):
    """Embedding of time, class and guidance scale that every block of a network reads.

    Args:
        num_channels: channels C of the result.
        num_classes: number of classes; 0 for a network without labels.
        guided: whether the network takes a guidance scale.
    """

    def __init__(self, num_channels: int, num_classes: int = 0, guided: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.guided = guided
        self.position = PositionalEmbedding(num_channels)
        self.time = PreciseLinear(num_channels, num_channels)
        self.label = nn.Embedding(num_classes, num_channels) if num_classes else None
        self.guidance = PreciseLinear(num_channels, num_channels) if guided else None
        self.out = PreciseLinear(num_channels, num_channels)

    def forward(self, t: Tensor, labels: Tensor | None, guidance: Tensor | None) -> Tensor:
        """Embed the conditions.

        Args:
            t: times. (B,), radians.
            labels: class labels. (B,) int64, or None for no class.
            guidance: guidance scales. (B,), or None.

        Returns:
            The embedding. (B, C), float32 or wider.

        Raises:
            ValueError: if a condition comes that the network was built without, or the guidance
                scale is missing.
        """
        if labels is not None and self.label is None:
            raise ValueError(
                "this network was built without classes but got labels; set num_classes, or stream "
                "data without labels"
            )
        if (guidance is None) == self.guided:
            raise ValueError(
                f"a network built with guided={self.guided} got "
                f"{'no guidance scale' if guidance is None else 'a guidance scale'}; set guided "
                "to match"
            )
        emb: Tensor = self.time(self.position(t))
        if self.label is not None and labels is not None:
            emb = emb + at_least_float32(self.label(labels))
        if self.guidance is not None and guidance is not None:
            emb = emb + self.guidance(self.position(guidance))
        return nn.functional.silu(self.out(nn.functional.silu(emb)))
