# SPDX-License-Identifier: Apache-2.0
"""Floor 3: networks F(u, t, labels, guidance), and the parts they share."""

from scm_lightning.networks.diffusers_network import DiffusersNetwork
from scm_lightning.networks.dit import DiT
from scm_lightning.networks.embeddings import Conditioning, PositionalEmbedding, PreciseLinear
from scm_lightning.networks.mlp import MLP
from scm_lightning.networks.norms import AdaptiveDoubleNorm, pixel_norm
from scm_lightning.networks.unet import UNet
from scm_lightning.networks.weighting import WeightingHead

__all__ = [
    "MLP",
    "AdaptiveDoubleNorm",
    "Conditioning",
    "DiT",
    "DiffusersNetwork",
    "PositionalEmbedding",
    "PreciseLinear",
    "UNet",
    "WeightingHead",
    "pixel_norm",
]
