# SPDX-License-Identifier: Apache-2.0
"""Stored arrays to a batch of data."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from scm_lightning.core import standard_normal
from scm_lightning.core.conditions import MASK
from scm_lightning.data.batch import Batch
from scm_lightning.data.degradation import Degradation
from scm_lightning.data.flips import flipped_names
from scm_lightning.data.index import ShardIndex
from scm_lightning.data.members import Array
from scm_lightning.data.shards import Sample
from scm_lightning.data.stored_conditions import check_name


@dataclass(frozen=True)
class Collate:
    """Normalisation of arrays; an object, not a closure, so that spawned workers can pickle it.

    Args:
        index: index of the shards.
        sigma_data: standard deviation that the data are scaled to.
        use_labels: whether the classes are handed on.
        seed: seed of the draws from the posteriors of latents that are stored as mean and std,
            of the flips, and of what a degradation draws.
        horizontal_flip: whether every other image, by chance, is mirrored left to right, with the
            pictures that belong to it.
        degradation: further conditions that are computed of the data.
        nulls: what stands for none of the conditions, by name; see `Batch`.
    """

    index: ShardIndex
    sigma_data: float
    use_labels: bool = True
    seed: int = 0
    horizontal_flip: bool = False
    degradation: Degradation | None = None
    nulls: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(
        self,
        arrays: Array,
        labels: Array,
        indices: Array,
        positions: Sequence[int],
        conditions: Mapping[str, Sequence[Array]] = {},
    ) -> Batch:
        """Make a batch.

        Args:
            arrays: arrays as stored. (B, *stored_shape).
            labels: classes. (B,).
            indices: numbers of the samples in their split. (B,).
            positions: places in the order of the whole run, which with the seed fix the draws.
            conditions: conditions as stored, of each sample, by name.
        """
        stored = torch.from_numpy(arrays)
        if stored.shape[1:] != self.index.shape:
            stored = self._draw(stored, positions)
        named: dict[str, Tensor] = {}
        for name, condition in self.index.conditions.items():
            named |= condition.batched(name, conditions[name])
        if self.horizontal_flip:
            chosen = [random.Random(f"{self.seed} flip {p}").random() < 0.5 for p in positions]
            stored = _flipped(stored, chosen)
            for name in flipped_names(self.index):
                named[name] = _flipped(named[name], chosen)
        x0 = self.index.arrays_to_data(stored, self.sigma_data)
        if self.degradation is not None:
            generators = self._generators("degradation", positions)
            named |= self.degradation(self._seen(x0), generators)
        labelled = self.use_labels and self.index.num_classes > 0
        classes = torch.from_numpy(labels.astype(np.int64)) if labelled else None
        numbers = torch.from_numpy(indices.astype(np.int64))
        return Batch(x0, classes, numbers, named, self.nulls)

    def samples(
        self, samples: Sequence[Sample], indices: Sequence[int], positions: Sequence[int]
    ) -> Batch:
        """Make a batch of whole samples; the other arguments are as above."""
        return self(
            np.stack([sample.array for sample in samples]),
            np.array([sample.label for sample in samples]),
            np.array(indices),
            positions,
            {name: [s.conditions[name] for s in samples] for name in self.index.conditions},
        )

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one sample's conditions, by name: all that batches have.

        Raises:
            ValueError: if a degradation makes what the shards hold, or none of such data.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for name, condition in self.index.conditions.items():
            shapes[name] = condition.shape
            if condition.varying:
                shapes[name + MASK] = condition.shape[:1]
        made = {} if self.degradation is None else self.degradation.shapes(self.index.shape)
        for name in made:
            if name in shapes:
                raise ValueError(
                    f"a degradation must make conditions that the shards do not hold, got {name}; "
                    "leave it out of conditions"
                )
            check_name(name)
        return {**shapes, **made}

    def deviations(self, x0: Tensor, conditions: Mapping[str, Tensor]) -> Tensor | None:
        """Root mean square differences between samples and what they were given of.

        Args:
            x0: samples. (B, ...), data units.
            conditions: what they were drawn by. (B, ...) each.

        Returns:
            One for each sample, on the scale that a degradation sees, (B,); None without one.
        """
        if self.degradation is None:
            return None
        differences = self.degradation.differences(self._seen(x0), conditions)
        return None if differences is None else differences.flatten(1).square().mean(1).sqrt()

    def given(self, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The condition `image` in data units, to be shown as samples are, by the name `given`.

        Args:
            conditions: what samples are drawn by. (B, ...) each.

        Returns:
            Its first channels, as many as the data have, (B, *shape); nothing if it has fewer.
        """
        index, image = self.index, conditions.get("image")
        if image is None or image.shape[1] < index.shape[0]:
            return {}
        image = image[:, : index.shape[0]]
        if not index.shows_pixels:
            return {"given": image * self.sigma_data}
        return {"given": index.arrays_to_data((image + 1) / 2 * index.max_value, self.sigma_data)}

    def _draw(self, stored: Tensor, positions: Sequence[int]) -> Tensor:
        """Samples of the posteriors. (B, 2 C, ...) means and deviations to (B, C, ...)."""
        mean, std = stored.float().chunk(2, dim=1)
        return mean + std * standard_normal(
            tuple(mean.shape), self._generators("posterior", positions)
        )

    def _generators(self, use: str, positions: Sequence[int]) -> list[torch.Generator]:
        """One generator per sample, that its place fixes."""
        seeds = (random.Random(f"{self.seed} {use} {p}").getrandbits(63) for p in positions)
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def _seen(self, x0: Tensor) -> Tensor:
        """Data as a degradation sees them: images in [-1, 1], others with unit variance."""
        index = self.index
        if not index.shows_pixels:
            return x0 / self.sigma_data
        return 2 * index.pixels_to_images(index.data_to_arrays(x0, self.sigma_data)) - 1


def _flipped(x: Tensor, chosen: Sequence[bool]) -> Tensor:
    """Some of the samples mirrored left to right."""
    return torch.where(torch.tensor(chosen).reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
