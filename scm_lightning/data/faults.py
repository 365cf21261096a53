# SPDX-License-Identifier: Apache-2.0
"""Damaged samples: refused by name, or left out and counted up to a limit.

A shard whose content does not fit its checksum is damaged as a whole, since nobody knows where.
That shows when it is first read to its end: its samples have then been handed out once at most, and
are never again.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from scm_lightning.data.index import Shard, ShardIndex, Split
from scm_lightning.data.location import place_of
from scm_lightning.data.shards import (
    Array,
    BrokenShardError,
    ChecksumError,
    Damage,
    Sample,
    read_shard,
)

logger = logging.getLogger(__name__)

FITS, DOES_NOT_FIT = 1, 2
"""What is known of a shard's content; 0 is nothing."""


class Faults:
    """What to do with damage in a split, and the account of it over all loader processes.

    Args:
        split: the split.
        max_damaged: damaged samples that are left out with a warning; one more is an error.
        verify: whether shards are compared with their checksums.
    """

    def __init__(self, split: Split, max_damaged: int, verify: bool) -> None:
        self.split = split
        self.numbers = split.numbers()
        self.max_damaged = max_damaged
        self.verify = verify
        # A flag for each sample, so that workers and passes do not count one twice; and one for
        # samples that the index does not list.
        self._damaged = torch.zeros(split.num_samples + 1, dtype=torch.bool)
        self._damaged.share_memory_()  # type: ignore[no-untyped-call]
        self._content = torch.zeros(len(split.shards), dtype=torch.uint8)
        self._content.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def count(self) -> int:
        """Damaged samples met so far."""
        return int(self._damaged.sum())

    def to_compare(self, chosen: int) -> Shard | None:
        """What a shard is to be compared with as it is read; None once that is done."""
        shard = self.split.shards[chosen]
        return shard if self.verify and shard.sha256 and not self._content[chosen] else None

    def note_content(self, chosen: int, fits: bool) -> None:
        """Keep for all processes whether a shard fits its checksum."""
        self._content[chosen] = FITS if fits else DOES_NOT_FIT

    def is_refused(self, chosen: int) -> bool:
        """Whether a shard does not fit its checksum."""
        return int(self._content[chosen]) == DOES_NOT_FIT

    def are_damaged(self, numbers: Sequence[int]) -> list[bool]:
        """Whether samples of these numbers have been met damaged."""
        damaged: list[bool] = self._damaged[list(numbers)].tolist()
        return damaged

    def whole(self) -> Array:
        """Numbers of the samples that have not been met damaged. int64."""
        return np.flatnonzero(~self._damaged[:-1].numpy())

    def meet(self, shard: str, damage: Damage, numbers: Sequence[int]) -> None:
        """Take note of damage.

        Args:
            shard: path or address of the shard.
            damage: what was found there.
            numbers: numbers in the split of the samples that it costs; -1 for one that the index
                does not list.

        Raises:
            ValueError: if it is more than is left out; names shard and sample.
        """
        if bool(self._damaged[list(numbers)].all()):
            return
        self._damaged[list(numbers)] = True
        what = f"sample {damage.key} of shard {shard}" if damage.key else f"shard {shard}"
        line = f"{what} is damaged: {damage.reason}"
        if self.count > self.max_damaged:
            raise ValueError(
                f"{line}; {self.count} samples are damaged and {self.max_damaged} are left out at "
                "most: prepare the shards again, or raise max_damaged of the data"
            )
        logger.warning("%s; left out, %d of at most %d", line, self.count, self.max_damaged)


def read_split(root: str, index: ShardIndex, faults: Faults) -> Iterator[Sample | None]:
    """All samples of a split in their order, None in the place of damaged ones.

    See `read_slots` for the arguments.
    """
    for chosen in range(len(faults.numbers)):
        yield from read_slots(root, chosen, index, faults)


def read_slots(
    root: str, chosen: int, index: ShardIndex, faults: Faults
) -> Iterator[Sample | None]:
    """Read a shard as the index lists it.

    Args:
        root: folder or place of the shards.
        chosen: which shard of the split.
        index: what samples must be like.
        faults: told of everything that is not so.

    Yields:
        Once for every number: the sample, or None in the place of a damaged one.
    """
    numbers, place = faults.numbers[chosen], place_of(root, faults.split.shards[chosen].name)
    if faults.is_refused(chosen):
        yield from itertools.repeat(None, len(numbers))
        return
    num_read, reason = 0, f"it ends early, of {len(numbers)} samples"
    listed = faults.to_compare(chosen)
    found_samples = read_shard(place, listed)
    try:
        for found in itertools.islice(found_samples, len(numbers)):
            fitting = checked(found, index) if isinstance(found, Sample) else found
            if isinstance(fitting, Damage):
                faults.meet(place, fitting, [numbers[num_read]])
            # What follows is looked at before the last, after which nobody may ask for more.
            if num_read == len(numbers) - 1:
                if more := next(found_samples, None):
                    faults.meet(place, Damage(f"more follow than {len(numbers)}", more.key), [-1])
                elif listed is not None:
                    faults.note_content(chosen, fits=True)
            num_read += 1
            yield None if isinstance(fitting, Damage) else fitting
    except BrokenShardError as error:
        reason = str(error)
    except ChecksumError as error:
        faults.note_content(chosen, fits=False)
        faults.meet(place, Damage(str(error), ""), numbers)
        yield from itertools.repeat(None, len(numbers) - num_read)
        return
    if missing := numbers[num_read:]:
        faults.meet(place, Damage(reason, ""), missing)
        yield from itertools.repeat(None, len(missing))


def checked(sample: Sample, index: ShardIndex) -> Sample | Damage:
    """A sample if it fits the index, else what does not fit."""
    shape, dtype = index.stored_shape, index.dtype
    if sample.array.shape != shape or sample.array.dtype != np.dtype(dtype):
        return Damage(
            f"it must hold an array of shape {shape} and type {dtype}, got {sample.array.shape} "
            f"and {sample.array.dtype}",
            sample.key,
        )
    # Without classes all are of class 0.
    if not 0 <= sample.label < max(index.num_classes, 1):
        return Damage(
            f"its label must be below {max(index.num_classes, 1)}, got {sample.label}", sample.key
        )
    if _has_bad_numbers(sample.array):
        return Damage("it holds numbers that are not finite", sample.key)
    return sample


def _has_bad_numbers(array: Array) -> bool:
    return array.dtype.kind == "f" and not bool(np.isfinite(array).all())
