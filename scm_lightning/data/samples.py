# SPDX-License-Identifier: Apache-2.0
"""The samples of a split as the index lists them; anything else is refused by name.

A shard whose content does not fit its checksum shows when it is first read to its end: its samples
have then been handed out once at most.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from scm_lightning.data.index import ShardIndex
from scm_lightning.data.location import place_of
from scm_lightning.data.shards import Sample, damaged, read_shard


class SplitSamples:
    """The samples of a split.

    Args:
        root: folder or place of the shards.
        index: its index.
        split: name of the split.
        verify: whether a shard is compared with its checksum, once by every process.

    Attributes:
        numbers: numbers in the split of the samples of each shard.
    """

    def __init__(self, root: str, index: ShardIndex, split: str, verify: bool) -> None:
        self.root, self.index = root, index
        self.shards = index.splits[split].shards
        self.numbers = index.splits[split].numbers()
        self._to_compare = set(range(len(self.shards))) if verify else set[int]()

    def __len__(self) -> int:
        """Samples of the split."""
        return self.numbers[-1].stop if self.numbers else 0

    def __iter__(self) -> Iterator[Sample]:
        """All samples, in order."""
        for chosen in range(len(self.shards)):
            yield from self.read(chosen)

    def key(self, number: int) -> str:
        """Name of a sample, `SHARD/KEY`, to find it by."""
        for shard, numbers in zip(self.shards, self.numbers, strict=True):
            if number in numbers:
                samples = read_shard(place_of(self.root, shard.name))
                found = next(itertools.islice(samples, number - numbers.start, None))
                return f"{shard.name}/{found.key}"
        raise ValueError(f"samples have numbers below {len(self)}, got {number}")

    def read(self, chosen: int) -> Iterator[Sample]:
        """All samples of a shard.

        Args:
            chosen: which shard of the split.

        Raises:
            ValueError: where it is not as listed; names shard and sample.
        """
        shard = self.shards[chosen]
        place = place_of(self.root, shard.name)
        listed = shard if chosen in self._to_compare else None
        samples = read_shard(place, listed, self.index.conditions, self.index.captions)
        num_read = 0
        for num_read, sample in enumerate(samples, 1):
            check(sample, self.index, place)
            # What follows is looked at before the last, after which nobody may ask for more.
            if num_read == shard.num_samples:
                if next(samples, None) is not None:
                    raise damaged(place, f"more samples follow than the {num_read} listed")
                self._to_compare.discard(chosen)
            yield sample
        if num_read < shard.num_samples:
            raise damaged(place, f"it has {num_read} samples of {shard.num_samples}")


def check(sample: Sample, index: ShardIndex, place: str) -> None:
    """Refuse a sample that does not fit the index.

    Args:
        sample: the sample.
        index: what it must be like.
        place: shard that it is from, for errors.

    Raises:
        ValueError: if it does not.
    """
    array, (shape, dtype), reason = sample.array, (index.stored_shape, index.dtype), ""
    if array.shape != shape or array.dtype != np.dtype(dtype):
        reason = (
            f"it must hold an array of shape {shape} and type {dtype}, got {array.shape} and "
            f"{array.dtype}"
        )
    elif not 0 <= sample.label < max(index.num_classes, 1):  # without classes all are of class 0
        reason = f"its label must be below {max(index.num_classes, 1)}, got {sample.label}"
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        reason = "it holds numbers that are not finite"
    for name, condition in index.conditions.items():
        if not reason and (misfit := condition.misfit(sample.conditions[name])):
            reason = f"its {condition.member(name)} {misfit}"
    if reason:
        raise damaged(place, reason, sample.key)
