# SPDX-License-Identifier: Apache-2.0
"""The fast path for sets that fit the memory: all arrays of a split, decoded at the start.

Batch i of process r in a run of R processes, of B samples each, is places

    (i R + r) B, ..., (i R + r + 1) B - 1

of an endless sequence: the samples in a new random order, pass after pass. So the joined batch of
all processes is the same for any R with the same R B, a batch does not depend on who loads it, and
a run continues from anywhere at no cost.
"""

import random
from collections.abc import Mapping
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


class MappedCondition(NamedTuple):
    """A condition of all samples, one behind the other: no memory is lost to different lengths.

    Attributes:
        values: as stored, flat.
        ends: 0 and the ends of the samples among the values. (N + 1,) int64.
        shape: shape of one sample's; -1 for a length that differs.
    """

    values: Array
    ends: Array
    shape: tuple[int, ...]

    def of(self, numbers: Array) -> list[Array]:
        """Arrays of the samples of some numbers."""
        slices = zip(self.ends[numbers], self.ends[numbers + 1], strict=True)
        return [self.values[start:end].reshape(self.shape) for start, end in slices]


class MappedSplit(NamedTuple):
    """A split in memory.

    Attributes:
        arrays: as stored. (N, *stored_shape).
        labels: classes. (N,) int64.
        conditions: by name.
    """

    arrays: Array
    labels: Array
    conditions: Mapping[str, MappedCondition] = {}


def map_split(samples: SplitSamples) -> MappedSplit:
    """Decode a split.

    Raises:
        ValueError: if a shard is damaged.
    """
    arrays = np.empty((len(samples), *samples.index.stored_shape), samples.index.dtype)
    labels = np.empty(len(samples), np.int64)
    declared = samples.index.conditions
    values = {name: bytearray() for name in declared}  # grows with what there is
    ends = {name: np.zeros(len(samples) + 1, np.int64) for name in declared}
    for number, sample in enumerate(samples):
        arrays[number], labels[number] = sample.array, sample.label
        for name, array in sample.conditions.items():
            values[name] += array.tobytes()
            ends[name][number + 1] = ends[name][number] + array.size
    conditions = {
        name: MappedCondition(
            np.frombuffer(values[name], stored.dtype),
            ends[name],
            (-1, *stored.shape[1:]) if stored.varying else stored.shape,
        )
        for name, stored in declared.items()
    }
    return MappedSplit(arrays, labels, conditions)


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
        conditions = {name: each.of(numbers) for name, each in self.split.conditions.items()}
        return self.collate(arrays, labels, numbers, positions, conditions)

    def _order(self, epoch: int) -> list[int]:
        """Order of a pass; that of the one before is kept, which a batch may begin in."""
        if epoch not in self._orders:
            order = list(range(self.num_samples))
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            self._orders = {e: kept for e, kept in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]
