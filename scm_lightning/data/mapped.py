# SPDX-License-Identifier: Apache-2.0
"""The fast path for sets that fit the memory: all arrays of a split, decoded at the start.

Batch i of process r in a run of R processes, of B samples each, is places

    (i R + r) B, ..., (i R + r + 1) B - 1

of an endless sequence: the samples in a new random order, pass after pass. So the joined batch of
all processes is the same for any R with the same R B, a batch does not depend on who loads it, and
a run continues from anywhere at no cost.
"""

import random
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from scm_lightning.data.batch import Batch
from scm_lightning.data.collate import Collate
from scm_lightning.data.loader import NumberedBatches
from scm_lightning.data.members import Array
from scm_lightning.data.samples import SplitSamples

MAX_MAPPED_BYTES = 1 << 32
"""Largest set that is not streamed unless told otherwise."""


class MappedSplit(NamedTuple):
    """A split in memory.

    Attributes:
        arrays: as stored. (N, *stored_shape).
        labels: classes. (N,) int64.
    """

    arrays: Array
    labels: Array


def map_split(samples: SplitSamples) -> MappedSplit:
    """Decode a split.

    Raises:
        ValueError: if a shard is damaged.
    """
    arrays = np.empty((len(samples), *samples.index.stored_shape), samples.index.dtype)
    labels = np.empty(len(samples), np.int64)
    for number, sample in enumerate(samples):
        arrays[number], labels[number] = sample.array, sample.label
    return MappedSplit(arrays, labels)


@dataclass(eq=False)
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

    split: MappedSplit
    collate: Collate
    batch_size: int
    seed: int
    rank: int
    world_size: int
    _orders: dict[int, list[int]] = field(default_factory=dict, init=False)

    elastic = True

    def __post_init__(self) -> None:
        self.num_samples = len(self.split.labels)

    def __getitem__(self, number: int) -> Batch:
        """Batch of a number, from 0."""
        first = (number * self.world_size + self.rank) * self.batch_size
        positions = range(first, first + self.batch_size)
        places = (divmod(position, self.num_samples) for position in positions)
        numbers = np.array([self._order(epoch)[place] for epoch, place in places])
        arrays, labels = self.split.arrays[numbers], self.split.labels[numbers]
        return self.collate(arrays, labels, numbers, positions)

    def _order(self, epoch: int) -> list[int]:
        """Order of a pass; that of the one before is kept, which a batch may begin in."""
        if epoch not in self._orders:
            order = list(range(self.num_samples))
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            self._orders = {e: kept for e, kept in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]
