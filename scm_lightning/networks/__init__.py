# SPDX-License-Identifier: Apache-2.0
"""Floor 3: networks F(u, t, labels, guidance), and the parts they share."""

from scm_lightning.networks.diffusers_network import DiffusersNetwork
from scm_lightning.networks.dit import DiT
from scm_lightning.networks.edm2 import EDM2_SIZES, EDM2UNet
from scm_lightning.networks.embeddings import (
    Conditioning,
    GuidanceEmbedding,
    PreciseLinear,
    without_added_conditions,
)
from scm_lightning.networks.magnitude import normalize_weights
from scm_lightning.networks.mlp import MLP
from scm_lightning.networks.model_map import ModelMap
from scm_lightning.networks.model_times import DiscreteTime, FlowTime, radians
from scm_lightning.networks.norms import AdaptiveDoubleNorm, pixel_norm
from scm_lightning.networks.parametrized import ParametrizedNetwork
from scm_lightning.networks.time_embedding import (
    PositionalEmbedding,
    TimeEmbedding,
    check_time_embeddings,
)
from scm_lightning.networks.unet import UNet
from scm_lightning.networks.video_dit import VideoDiT
from scm_lightning.networks.weighting import WeightingHead

__all__ = [
    "EDM2_SIZES",
    "MLP",
    "AdaptiveDoubleNorm",
    "Conditioning",
    "DiT",
    "DiffusersNetwork",
    "DiscreteTime",
    "EDM2UNet",
    "FlowTime",
    "GuidanceEmbedding",
    "ModelMap",
    "ParametrizedNetwork",
    "PositionalEmbedding",
    "PreciseLinear",
    "TimeEmbedding",
    "UNet",
    "VideoDiT",
    "WeightingHead",
    "check_time_embeddings",
    "normalize_weights",
    "pixel_norm",
    "radians",
    "without_added_conditions",
]
