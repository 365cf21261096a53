# SPDX-License-Identifier: Apache-2.0
"""The fast path for sets that fit a disk cache: all arrays in one file, mapped into memory.

Batch i of process r in a run of R processes, of B samples each, is places

    (i R + r) B, ..., (i R + r + 1) B - 1

of an endless sequence: the samples in a new random order, pass after pass. So the joined batch of
all processes is the same for any R with the same R B, a batch does not depend on who loads it, and
a run goes on anywhere at no cost.
"""

import random
import struct
import zlib
from typing import NamedTuple

import numpy as np

from scm_lightning.data.batch import Batch
from scm_lightning.data.collate import Collate
from scm_lightning.data.loader import NumberedBatches
from scm_lightning.data.shards import Array, Damage

MAX_MAPPED_BYTES = 1 << 32
"""Larger sets are streamed unless told otherwise."""


class MappedSplit(NamedTuple):
    """All whole samples of a split.

    Attributes:
        arrays: as stored. (N, *stored_shape).
        labels: classes. (N,) int64.
        indices: numbers in the split, without those of damaged samples. (N,) int64.
        damaged: what the others suffer from: shard, damage, and their numbers.
        checksums: what each sample is compared with when it is first used, see `checksum_of`;
            None for arrays in memory. (N,) uint32.
        place: folder of the arrays, for errors.
    """

    arrays: Array
    labels: Array
    indices: Array
    damaged: list[tuple[str, Damage, list[int]]]
    checksums: Array | None = None
    place: str = ""


class MappedBatches(NumberedBatches):
    """Batches by their number; see the module for the order.

    Args:
        split: the samples.
        collate: makes a batch.
        batch_size: samples per batch and process.
        seed: seed of the order.
        rank: number of this process.
        world_size: number of processes.
    """

    elastic = True

    def __init__(
        self,
        split: MappedSplit,
        collate: Collate,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.split = split
        self.num_samples = len(split.labels)
        self.collate = collate
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._orders: dict[int, list[int]] = {}
        self._compared = np.zeros(self.num_samples, bool)

    def __getitem__(self, number: int) -> Batch:
        """Batch of a number, from 0."""
        first = (number * self.world_size + self.rank) * self.batch_size
        positions = range(first, first + self.batch_size)
        places = (divmod(position, self.num_samples) for position in positions)
        rows = np.array([self._order(epoch)[place] for epoch, place in places])
        split = self.split
        arrays, labels, indices = split.arrays[rows], split.labels[rows], split.indices[rows]
        if split.checksums is not None:
            new = ~self._compared[rows]
            of_new = (each[new].tolist() for each in (indices, labels, split.checksums[rows]))
            for index, label, listed, array in zip(*of_new, arrays[new], strict=True):
                if checksum_of(index, label, array) != listed:
                    raise ValueError(
                        f"sample {index} in the cache {split.place} does not fit its checksum; "
                        "remove the cache, and it is made anew"
                    )
            self._compared[rows] = True
        return self.collate(arrays, labels, indices, positions)

    def _order(self, epoch: int) -> list[int]:
        """Order of a pass; that of the one before is kept, which a batch may begin in."""
        if epoch not in self._orders:
            order = list(range(self.num_samples))
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            self._orders = {e: kept for e, kept in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]


def checksum_of(index: int, label: int, array: Array) -> int:
    """CRC-32 of a sample's number, label and array."""
    return zlib.crc32(array.data, zlib.crc32(struct.pack("<qq", index, label)))
