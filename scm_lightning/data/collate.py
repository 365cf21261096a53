# SPDX-License-Identifier: Apache-2.0
"""Stored arrays to a batch of data."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scm_lightning.core import standard_normal
from scm_lightning.data.batch import Batch
from scm_lightning.data.index import ShardIndex
from scm_lightning.data.members import Array


@dataclass(frozen=True)
class Collate:
    """Normalisation of arrays; an object, not a closure, so that spawned workers can pickle it.

    Args:
        index: index of the shards.
        sigma_data: standard deviation that the data are scaled to.
        use_labels: whether the classes are handed on.
        seed: seed of the draws from the posteriors of latents that are stored as mean and std,
            and of the flips.
        horizontal_flip: whether every other image, by chance, is mirrored left to right.
    """

    index: ShardIndex
    sigma_data: float
    use_labels: bool = True
    seed: int = 0
    horizontal_flip: bool = False

    def __call__(
        self, arrays: Array, labels: Array, indices: Array, positions: Sequence[int]
    ) -> Batch:
        """Make a batch.

        Args:
            arrays: arrays as stored. (B, *stored_shape).
            labels: classes. (B,).
            indices: numbers of the samples in their split. (B,).
            positions: places in the order of the whole run, which with the seed fix the draws.
        """
        stored = torch.from_numpy(arrays)
        if stored.shape[1:] != self.index.shape:
            stored = self._draw(stored, positions)
        if self.horizontal_flip:
            chosen = [random.Random(f"{self.seed} flip {p}").random() < 0.5 for p in positions]
            stored = torch.where(torch.tensor(chosen)[:, None, None, None], stored.flip(-1), stored)
        x0 = self.index.arrays_to_data(stored, self.sigma_data)
        labelled = self.use_labels and self.index.num_classes > 0
        classes = torch.from_numpy(labels.astype(np.int64)) if labelled else None
        return Batch(x0, classes, torch.from_numpy(indices.astype(np.int64)))

    def _draw(self, stored: Tensor, positions: Sequence[int]) -> Tensor:
        """Samples of the posteriors. (B, 2 C, ...) means and deviations to (B, C, ...)."""
        mean, std = stored.float().chunk(2, dim=1)
        seeds = (random.Random(f"{self.seed} posterior {p}").getrandbits(63) for p in positions)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return mean + std * standard_normal(tuple(mean.shape), generators)
