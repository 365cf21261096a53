# SPDX-License-Identifier: Apache-2.0
"""Floor 7: from a source of images to a folder of shards, as `scm prepare` does; the digits."""

from scm_lightning.preparation.captions import Captions
from scm_lightning.preparation.content import Moments, Pixels, ShardContent
from scm_lightning.preparation.digits import Digits, load_digit_splits
from scm_lightning.preparation.engine import Preparation, prepare
from scm_lightning.preparation.latent_content import EncodedLatents
from scm_lightning.preparation.moving_digits import MovingDigits, load_moving_digit_splits
from scm_lightning.preparation.plan import Recipe
from scm_lightning.preparation.transform import ImageTransform

__all__ = [
    "Captions",
    "Digits",
    "EncodedLatents",
    "ImageTransform",
    "Moments",
    "MovingDigits",
    "Pixels",
    "Preparation",
    "Recipe",
    "ShardContent",
    "load_digit_splits",
    "load_moving_digit_splits",
    "prepare",
]
