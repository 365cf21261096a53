# SPDX-License-Identifier: Apache-2.0
r"""Embedding of the time that a network sees.

    c_noise(t) = t in radians; emb = (cos(t f_i), sin(t f_i)), f_i = 10000^(-i / (n/2 - 1))

Neither 1000 t nor log sigma: both make the derivative in t large, and log sigma's is infinite at
pi/2.
Source: arXiv 2410.11081, Sections 4.1 and 5.2.
Axes: B batch, C channels of the embedding.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from scm_lightning.core import at_least_float32


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


class FourierEmbedding(nn.Module):
    """Random Fourier features of a scalar, as EDM's: unstable in a consistency model.

    The derivative grows with the scale: 16 is EDM's, and an ablation here, no recommendation.

    Args:
        num_channels: channels C of the result, even.
        scale: standard deviation of the frequencies.
    """

    frequencies: Tensor

    def __init__(self, num_channels: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(num_channels // 2))

    def forward(self, t: Tensor) -> Tensor:
        """Embed one scalar per sample. (B,) to (B, C)."""
        t = at_least_float32(t)
        angles = 2 * math.pi * t[:, None] * self.frequencies.to(t.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class PhasedFourierEmbedding(nn.Module):
    """Random Fourier features of a scalar, as EDM2's: cosines of random frequencies and phases.

    Args:
        num_channels: channels C of the result.

    Source: arXiv 2312.02696, Eq. 75, without its factor sqrt(2).
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(num_channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, t: Tensor) -> Tensor:
        """Embed one scalar per sample. (B,) to (B, C)."""
        t = at_least_float32(t)
        return (t[:, None] * self.frequencies.to(t.dtype) + self.phases.to(t.dtype)).cos()


@dataclass(frozen=True)
class TimeEmbedding:
    """Embedding of the time; the defaults are the paper's, the others what it replaced.

    Args:
        transform: "identity" is c_noise = t. "log" is log(tan t) / 4, EDM's c_noise but for a
            constant; its derivative is infinite at 0 and pi/2.
        features: "positional", "fourier" of EDM's scale 16, or "mp_fourier", EDM2's.
        sigma_data: that of the path, with "log": EDM's own c_noise = log(sigma) / 4, where sigma =
            sigma_data tan t. None leaves out the constant log(sigma_data) / 4.

    Raises:
        ValueError: if an option is unknown or does not fit.

    Source: arXiv 2410.11081, Section 4.1 and Figure 4; c_noise, arXiv 2206.00364, Table 1.
    """

    transform: Literal["identity", "log"] = "identity"
    features: Literal["positional", "fourier", "mp_fourier"] = "positional"
    sigma_data: float | None = None

    def __post_init__(self) -> None:
        if self.transform not in ("identity", "log") or (
            self.features not in ("positional", "fourier", "mp_fourier")
        ):
            raise ValueError(
                "a time embedding has transform identity or log, features positional, fourier or "
                f"mp_fourier, got {self.transform} and {self.features}; the first are the paper's"
            )
        if self.sigma_data is not None and (self.transform != "log" or not self.sigma_data > 0):
            raise ValueError(
                "a time embedding takes a positive sigma_data, and only with transform log, got "
                f"{self.sigma_data} with {self.transform}; leave it out, or set that of the path"
            )

    def make_features(self, num_channels: int) -> nn.Module:
        """Module from c_noise (B,) to features (B, num_channels)."""
        if self.features == "fourier":
            return FourierEmbedding(num_channels, scale=16.0)
        if self.features == "mp_fourier":
            return PhasedFourierEmbedding(num_channels)
        return PositionalEmbedding(num_channels)

    def c_noise(self, t: Tensor) -> Tensor:
        """Scalar that the features are made of. (B,) radians to (B,), float32 or wider."""
        t = at_least_float32(t)
        if self.transform == "identity":
            return t
        sigma = t.tan() if self.sigma_data is None else self.sigma_data * t.tan()
        return sigma.log() / 4


def check_time_embeddings(network: nn.Module, sigma_data: float) -> None:
    """Refuse a network that would take the times of one path for those of another.

    Raises:
        ValueError: if a `TimeEmbedding` in it has another `sigma_data` than the path.
    """
    for part in network.modules():
        embedding = getattr(part, "time_embedding", None)
        if not isinstance(embedding, TimeEmbedding):
            continue
        if embedding.sigma_data not in (None, sigma_data):
            raise ValueError(
                f"a time embedding's sigma_data must be that of the path, {sigma_data}, got "
                f"{embedding.sigma_data}; set both to the same"
            )
