# SPDX-License-Identifier: Apache-2.0
"""Sets that are streamed: from the shards, in their order, with a shuffle buffer.

In every pass the shards stand in a new random order; their samples, one after the other, are cut
into L R equal parts, one for each of the L lanes of each of R processes (a lane is what one loader
worker reads). A lane goes through its part in windows of the size of the buffer, and shuffles each.
So a pass holds every sample once, whatever the number of shards, workers and processes; at most one
shard at either end of a part is read by two lanes. Batch i of a process is the next one of lane
i mod L. All of it follows from the numbers and the seed, so a run continues from anywhere at the
cost of a window.
"""

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

from scm_lightning.data.batch import Batch
from scm_lightning.data.collate import Collate
from scm_lightning.data.loader import NumberedBatches
from scm_lightning.data.samples import SplitSamples
from scm_lightning.data.shards import Sample

_Place = tuple[int, Sample]
"""Number of a sample in the split, and the sample."""


class Layout(NamedTuple):
    """Division of a run's batches among processes and lanes.

    Attributes:
        batch_size: samples per batch and process.
        rank: number of this process.
        world_size: number of processes.
        num_lanes: lanes of a process: its loader workers, or 1.
        shuffle_buffer: samples of a window.
        seed: seed of the order.
    """

    batch_size: int
    rank: int
    world_size: int
    num_lanes: int
    shuffle_buffer: int
    seed: int

    @property
    def num_parts(self) -> int:
        """Parts of a pass: lanes of all processes."""
        return self.world_size * self.num_lanes


class StreamedBatches(NumberedBatches):
    """Batches by their number; consecutive ones of a lane are cheap.

    Args:
        samples: the samples of the split.
        collate: makes a batch.
        layout: how batches are dealt.

    Raises:
        ValueError: if there are fewer samples than lanes.
    """

    elastic = False

    def __init__(self, samples: SplitSamples, collate: Collate, layout: Layout) -> None:
        self.samples = samples
        self.collate = collate
        self.layout = layout
        self.num_samples = len(samples)
        if self.num_samples < layout.num_parts:
            raise ValueError(
                f"{self.num_samples} samples are too few for {layout.world_size} processes with "
                f"{layout.num_lanes} loader workers each; use fewer"
            )
        self._readers: dict[int, _Lane] = {}

    def __getitem__(self, number: int) -> Batch:
        """Batch of a number, from 0."""
        layout = self.layout
        turn, lane = divmod(number, layout.num_lanes)
        part = layout.rank * layout.num_lanes + lane
        if lane not in self._readers:
            self._readers[lane] = _Lane(self, part)
        positions = range(turn * layout.batch_size, (turn + 1) * layout.batch_size)
        numbers, samples = zip(*(self._readers[lane].sample(p) for p in positions), strict=True)
        places = [p * layout.num_parts + part for p in positions]
        return self.collate.samples(samples, numbers, places)

    def __getstate__(self) -> dict[str, object]:
        """Leave open files behind: they cannot be sent to a worker."""
        return {**vars(self), "_readers": {}}

    def read(self, epoch: int, start: int) -> Iterator[_Place]:
        """Samples of a pass from a place on."""
        order = list(range(len(self.samples.numbers)))
        random.Random(f"{self.layout.seed} {epoch}").shuffle(order)
        for chosen in order:
            numbers = self.samples.numbers[chosen]
            if start >= len(numbers):
                start -= len(numbers)
                continue
            places = zip(numbers, self.samples.read(chosen), strict=True)
            yield from itertools.islice(places, start, None)
            start = 0


class _Lane:
    """One part of every pass, in windows.

    Args:
        stream: what it is a lane of.
        part: number of the part, over all processes.
    """

    def __init__(self, stream: StreamedBatches, part: int) -> None:
        num_parts = stream.layout.num_parts
        self.stream = stream
        self.part = part
        self.start = part * stream.num_samples // num_parts
        self.length = (part + 1) * stream.num_samples // num_parts - self.start
        self._window: list[_Place] = []
        self._at: tuple[int, int] | None = None  # pass and number of the window held
        self._reader: Iterator[_Place] = iter(())
        self._reads: tuple[int, int] | None = None  # the window that the reader comes to next

    def sample(self, position: int) -> _Place:
        """The sample at a position of the lane's endless sequence."""
        epoch, within = divmod(position, self.length)
        window, place = divmod(within, self.stream.layout.shuffle_buffer)
        if self._at != (epoch, window):
            self._window = self._read_window(epoch, window)
            self._at = (epoch, window)
        return self._window[place]

    def _read_window(self, epoch: int, window: int) -> list[_Place]:
        first = window * self.stream.layout.shuffle_buffer
        size = min(self.stream.layout.shuffle_buffer, self.length - first)
        if self._reads != (epoch, window):
            self._reader = self.stream.read(epoch, self.start + first)
        places = list(itertools.islice(self._reader, size))
        self._reads = (epoch, window + 1)
        key = f"{self.stream.layout.seed} {epoch} {self.part} {window}"
        random.Random(key).shuffle(places)
        return places
