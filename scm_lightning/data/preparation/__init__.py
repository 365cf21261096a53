# SPDX-License-Identifier: Apache-2.0
"""From a source of images to a folder of shards: what `scm prepare` does."""

from scm_lightning.data.preparation.content import Moments, Pixels, ShardContent
from scm_lightning.data.preparation.engine import Preparation, Recipe, prepare
from scm_lightning.data.preparation.latent_content import EncodedLatents
from scm_lightning.data.preparation.transform import ImageTransform

__all__ = [
    "EncodedLatents",
    "ImageTransform",
    "Moments",
    "Pixels",
    "Preparation",
    "Recipe",
    "ShardContent",
    "prepare",
]
