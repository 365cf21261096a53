# SPDX-License-Identifier: Apache-2.0
"""Orders for samples to draw, dealt to processes."""

from collections.abc import Iterator

import torch
from torch.utils.data import IterableDataset

from scm_lightning.data.batch import SampleRequest


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

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        batch_size: int,
        shape: tuple[int, ...],
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.indices = range(num_samples)
        self.num_orders = -(-num_samples // (world_size * batch_size))
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.shape = shape
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """Number of orders."""
        return self.num_orders

    def __iter__(self) -> Iterator[SampleRequest]:
        """Yield the orders."""
        for turn in range(self.num_orders):
            number = turn * self.world_size + self.rank
            own = self.indices[number * self.batch_size : (number + 1) * self.batch_size]
            indices = torch.tensor(own, dtype=torch.int64)
            labels = indices % self.num_classes if self.num_classes else None
            yield SampleRequest(indices, labels, self.shape, self.seed)
