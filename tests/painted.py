# SPDX-License-Identifier: Apache-2.0
"""A source of images that are painted on demand and tell their number, and what is made of it."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scm_lightning.data import Sample, ShardIndex, read_shard
from scm_lightning.preparation.content import Pixels
from scm_lightning.preparation.plan import Recipe
from scm_lightning.preparation.sources import ImageSource, Item, UnreadableImageError
from scm_lightning.preparation.transform import ImageTransform

SHAPE = (3, 6, 4)
AS_IT_IS = ImageTransform()
SHARES = (0.5, 0.34)
"""Of the first and the second of three classes."""


class PaintedImages(ImageSource):
    """Images of 6 x 4 noisy pixels, sorted by class, with their number in a corner.

    Args:
        num: number of images, less than 65,536.
        unreadable: numbers of images that cannot be read.
        num_heldout: images that belong to a held-out split of the source's own.
        seconds: time that loading an image takes.
        failing: number of an image at which the whole source fails.
    """

    kind = "painted"
    description = "painted images"

    def __init__(
        self,
        num: int,
        unreadable: Sequence[int] = (),
        num_heldout: int = 0,
        seconds: float = 0.0,
        failing: int = -1,
    ) -> None:
        self.class_names = ["red", "green", "blue"]
        first, second = (round(share * num) for share in SHARES)
        labels = [0] * first + [1] * second + [2] * (num - first - second)
        step = num // num_heldout if num_heldout else num
        splits = ["train" if num_heldout else ""] * num
        for number in range(num_heldout):
            splits[number * step] = "heldout"
        self.items = [
            Item(f"painted/{number}.png", label, split, 72)
            for number, (label, split) in enumerate(zip(labels, splits, strict=True))
        ]
        self.unreadable, self.seconds, self.failing = set(unreadable), seconds, failing

    def load(self, number: int) -> np.ndarray:
        time.sleep(self.seconds)
        if number in self.unreadable:
            raise UnreadableImageError(f"{self.items[number].name}: too faint")
        if number == self.failing:
            raise OSError("the drive was taken out")
        image = np.random.default_rng(number).integers(0, 256, (6, 4, 3), dtype=np.uint8)
        image[0, 0] = (number // 256, number % 256, 0)
        return image

    @staticmethod
    def number_of(stored: np.ndarray) -> int:
        """Number of an image that was stored. (3, H, W)."""
        high, low, _ = stored[:, 0, 0]
        return 256 * int(high) + int(low)


def recipe(source: ImageSource, transform: ImageTransform = AS_IT_IS, **options: object) -> Recipe:
    """Shards of 8 images, loaded 3 at a time: neither divides what it is part of."""
    content = Pixels(SHAPE)
    content.batch_size = 3
    return Recipe(source, transform, content, **{"samples_per_shard": 8, **options})


def read_split(folder: Path, split: str) -> list[Sample]:
    """All samples of a split in their order."""
    shards = ShardIndex.read(folder).splits[split].shards
    return [sample for shard in shards for sample in read_shard(str(folder / shard.name))]


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but a lock."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "lock"
    }
