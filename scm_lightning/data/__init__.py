# SPDX-License-Identifier: Apache-2.0
"""Floor 4: shards in, batches out."""

import scm_lightning.torchvision_guard  # noqa: F401  before lightning
from scm_lightning.data.augmentation import Augmentation, HorizontalFlip
from scm_lightning.data.batch import Batch, SampleRequest
from scm_lightning.data.digits import Digits, load_digit_splits, prepare_digits
from scm_lightning.data.fashion_mnist import FashionMNIST, load_fashion_splits
from scm_lightning.data.image_set import ImageSet, prepare_shards
from scm_lightning.data.index import Latents, Shard, ShardIndex, Split
from scm_lightning.data.loader import NumberedBatches, TrainingLoader
from scm_lightning.data.module import Reading, ShardDataModule
from scm_lightning.data.noise import GaussianNoise
from scm_lightning.data.prepared import Shards
from scm_lightning.data.requests import RequestStream
from scm_lightning.data.shards import Sample, read_shard, write_shard

__all__ = [
    "Augmentation",
    "Batch",
    "Digits",
    "FashionMNIST",
    "GaussianNoise",
    "HorizontalFlip",
    "ImageSet",
    "Latents",
    "NumberedBatches",
    "Reading",
    "RequestStream",
    "Sample",
    "SampleRequest",
    "Shard",
    "ShardDataModule",
    "ShardIndex",
    "Shards",
    "Split",
    "TrainingLoader",
    "load_digit_splits",
    "load_fashion_splits",
    "prepare_digits",
    "prepare_shards",
    "read_shard",
    "write_shard",
]
