# SPDX-License-Identifier: Apache-2.0
"""Damaged samples: refused by name, or left out and counted up to a limit."""

import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from scm_lightning.data.index import ShardIndex
from scm_lightning.data.shards import (
    Array,
    BrokenShardError,
    ChecksumError,
    Damage,
    Sample,
    read_shard,
)

logger = logging.getLogger(__name__)


class Faults:
    """What to do with damage in a split, and the account of it over all loader processes.

    Args:
        max_damaged: damaged samples that are left out with a warning; one more is an error.
        num_samples: samples of the split.
        verify: whether the checksums of shards are compared.
    """

    def __init__(self, max_damaged: int, num_samples: int, verify: bool = True) -> None:
        self.max_damaged = max_damaged
        self.verify = verify
        self.met: list[tuple[str, Damage, list[int]]] = []
        """What this process met first: shard, damage, and numbers of the samples in the split."""
        self.whole: set[str] = set()
        """Shards that this process has found to fit their checksum; by path or address."""
        # A flag for each sample, so that workers and passes do not count one twice; and one for
        # samples that the index does not list.
        self._damaged = torch.zeros(num_samples + 1, dtype=torch.bool)
        self._damaged.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def count(self) -> int:
        """Damaged samples met so far."""
        return int(self._damaged.sum())

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
        self.met.append((shard, damage, list(numbers)))
        what = f"sample {damage.key} of shard {shard}" if damage.key else f"shard {shard}"
        line = f"{what} is damaged: {damage.reason}"
        if self.count > self.max_damaged:
            raise ValueError(
                f"{line}; {self.count} samples are damaged and {self.max_damaged} are left out at "
                "most: prepare the shards again, or raise max_damaged of the data"
            )
        logger.warning("%s; left out, %d of at most %d", line, self.count, self.max_damaged)


def read_slots(
    place: str, sha256: str, numbers: range, index: ShardIndex, faults: Faults
) -> Iterator[Sample | None]:
    """Read a shard as the index lists it.

    The first time that all of it is read, its checksum is compared, before the last sample is
    handed out.

    Args:
        place: path or address of the shard.
        sha256: its checksum by the index; empty if it has none.
        numbers: numbers in the split of the samples that it holds by the index.
        index: what samples must be like.
        faults: told of everything that is not so.

    Yields:
        Once for every number: the sample, or None in the place of a damaged one.

    Raises:
        ValueError: if more is damaged than may be left out, or the checksum does not fit though
            no sample is damaged: one has changed, and nobody can say which.
    """
    num_read, num_damaged, reason = 0, 0, f"it ends early, of {len(numbers)} samples"
    waiting: list[Sample | None] = []
    try:
        is_compared = faults.verify and place not in faults.whole
        for found in read_shard(place, sha256 if is_compared else ""):
            yield from waiting
            waiting = []
            if num_read == len(numbers):
                faults.meet(place, Damage(f"more follow than {num_read}", found.key), [-1])
                return
            fitting = checked(found, index) if isinstance(found, Sample) else found
            if isinstance(fitting, Damage):
                faults.meet(place, fitting, [numbers[num_read]])
                num_damaged += 1
            num_read += 1
            waiting = [None if isinstance(fitting, Damage) else fitting]
        faults.whole.add(place)
    except BrokenShardError as error:
        reason = str(error)
    except ChecksumError as error:
        # With damage that is known, and left out, it could not fit.
        if not num_damaged and num_read == len(numbers):
            raise ValueError(
                f"shard {place} is damaged: {error}; prepare the shards again, or set "
                "reading.verify of the data to never"
            ) from error
    yield from waiting
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
