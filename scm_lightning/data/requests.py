# SPDX-License-Identifier: Apache-2.0
"""Orders for samples to draw, dealt to processes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import IterableDataset

from scm_lightning.data.batch import SampleRequest


@dataclass(eq=False)
class RequestStream(IterableDataset[SampleRequest]):
    """Orders for samples 0 to N - 1, every class equally often, dealt to processes unpadded.

    Whole orders are dealt, so that each is drawn in the same batch whatever the number of
    processes, and its samples are the same to the last bit. Every process gets as many orders, the
    last of which may be empty: sharded networks are gathered by all processes together.

    Args:
        num_samples: number of samples N of the whole set.
        num_classes: classes, taken in turn; 0 for no labels.
        batch_size: samples per order.
        shape: shape of one sample.
        seed: seed of the set.
        rank: number of this process.
        world_size: number of processes.
    """

    num_samples: int
    num_classes: int
    batch_size: int
    shape: tuple[int, ...]
    seed: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        """Number of orders."""
        return -(-self.num_samples // (self.world_size * self.batch_size))

    def __iter__(self) -> Iterator[SampleRequest]:
        """Yield the orders."""
        for turn in range(len(self)):
            number = turn * self.world_size + self.rank
            own = range(self.num_samples)[number * self.batch_size : (number + 1) * self.batch_size]
            indices = torch.tensor(own, dtype=torch.int64)
            labels = indices % self.num_classes if self.num_classes else None
            yield SampleRequest(indices, labels, self.shape, self.seed)
