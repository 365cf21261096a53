# SPDX-License-Identifier: Apache-2.0
"""Refusal of indices with values that `ShardIndex.write` does not write."""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scm_lightning.data.index import ShardIndex

SLACK = 1 << 20
"""Bytes by which the samples of an index may be more than its files; cut files are damage."""
MAX_NUMBER = 1e30
MAX_COUNT = 1 << 40
MAX_SAMPLES = 1 << 30
"""Most samples of a split: a byte of memory is set aside for each."""
MAX_CLASSES = 100_000
"""Most classes of a data set: a larger number is a mistake, such as an identifier."""


def check_types(index: "ShardIndex") -> None:
    """Refuse values of other types than `write` writes, and more samples than the files can hold.

    So every count and size that is computed of the index is bounded by the sizes of the files.
    """
    latents = index.latents
    sizes = [*index.shape, *(latents.image_shape if latents is not None else ())]
    of_latents = (latents.autoencoder, latents.weights_sha256, latents.stored) if latents else ()
    shards = index.shards
    sizes += [shard.num_samples for shard in shards]
    conditions = index.conditions.values()
    sizes += [size for condition in conditions for size in condition.shape]
    texts = [index.source, index.source_checksum, index.version, *of_latents, *index.class_names]
    texts += [text for shard in shards for text in (shard.name, shard.sha256)]
    texts += [t for c in conditions for t in (c.null_sha256, c.encoder, c.encoder_sha256)]
    counts = [index.num_classes, index.num_unreadable, *(shard.num_bytes for shard in shards)]
    if not all(type(size) is int and 0 < size < MAX_COUNT for size in sizes):
        raise TypeError("shapes and numbers of samples must be of whole numbers from 1")
    if not all(type(count) is int and 0 <= count < MAX_COUNT for count in counts):
        raise TypeError(f"counts must be whole numbers from 0, below {MAX_COUNT:,}")
    if index.num_classes > MAX_CLASSES:
        raise TypeError(f"there must be at most {MAX_CLASSES:,} classes, got {index.num_classes}")
    if not all(type(text) is str for text in texts):
        raise TypeError("names and checksums must be texts")
    if not all(type(told) is bool for told in (index.captions, *(c.varying for c in conditions))):
        raise TypeError("captions and varying must be true or false")
    numbers = [index.max_value, *index.mean, *index.std]
    if not all(type(number) in (int, float) and abs(number) < MAX_NUMBER for number in numbers):
        raise TypeError("max_value, mean and std must be numbers below 1e30")
    if index.max_value <= 1 / MAX_NUMBER:
        raise TypeError(f"max_value must be above 1e-30, got {index.max_value}")
    size = math.prod(index.stored_shape) * np.dtype(index.dtype).itemsize
    for name, split in index.splits.items():
        num_bytes = sum(shard.num_bytes for shard in split.shards)
        if split.num_samples > MAX_SAMPLES:
            raise ValueError(f"the split {name} must have at most {MAX_SAMPLES:,} samples")
        if split.num_samples * size > num_bytes + SLACK:
            raise ValueError(
                f"the split {name} cannot hold {split.num_samples} samples of {size} bytes in "
                f"{num_bytes}"
            )
