# SPDX-License-Identifier: Apache-2.0
"""A set of images somewhere on this machine, as `scm prepare` reads it.

A source lists its images when it is made, and decodes one at a time on demand. It reads nothing
from the network, runs nothing that it finds in a file and writes nothing.

Axes: H and W pixels, C channels, last: 1 grey, 3 red green blue, 4 with alpha.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scm_lightning.data.shards import Array


class UnreadableImageError(ValueError):
    """An image that is damaged, dangerous or of no use; names the image and says why."""


class Item(NamedTuple):
    """One image of a source.

    Attributes:
        name: unique within the source and always the same: a path within it, or archive/key.
        label: class number; 0 in a source without classes.
        split: `train`, `heldout`, or empty where the source has no split of its own.
    """

    name: str
    label: int
    split: str


class ImageSource(ABC):
    """Images by number. Can be pickled, so that processes can share the work.

    Attributes:
        kind: what the source is, as `open_source` calls it.
        description: one line for the index: kind and path.
        class_names: names by class number; empty in a source without classes.
        max_value: the pixel value shown as white.
        items: the images, always in the same order.
    """

    kind: str
    description: str
    class_names: list[str]
    max_value: float = 255.0
    items: Sequence[Item]

    def fingerprint(self) -> str:
        """SHA-256 over kind, class names, and name, class, split and size of every item.

        Two sources that differ in one of these differ here. Pixels are not read, nor times of
        change, which a copy or a checkout would alter: an image that was changed without changing
        its size in bytes goes unnoticed.
        """
        digest = hashlib.sha256(json.dumps([self.kind, self.class_names]).encode())
        for item, num_bytes in zip(self.items, self._sizes(), strict=True):
            digest.update(json.dumps([*item, num_bytes]).encode() + b"\n")
        return digest.hexdigest()

    @abstractmethod
    def load(self, number: int) -> Array:
        """Decode one image.

        Args:
            number: of the item.

        Returns:
            The image. (H, W, C) uint8, C in {1, 3, 4}.

        Raises:
            UnreadableImageError: if it cannot be read; names the item.
        """

    @abstractmethod
    def _sizes(self) -> Iterable[int]:
        """Bytes of every item as it is stored, or of the file that holds it."""


class InMemorySource(ImageSource):
    """A small set in a few files, which every process that loads from it reads as a whole.

    Args:
        path: of the files.
        class_names: names by class number.

    Raises:
        ValueError: if a file is missing or damaged.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self.path = path
        self.description = f"{self.kind} {path}"
        self.class_names = list(class_names)
        self._images: Array | None
        self.items, self._images = self._read()
        self._num_bytes = math.prod(self._images.shape[1:])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None}

    def load(self, number: int) -> Array:
        """Look up one image; see `ImageSource.load`."""
        if self._images is None:  # in another process
            _, self._images = self._read()
        image: Array = self._images[number]
        return image

    def _sizes(self) -> Iterable[int]:
        return [self._num_bytes] * len(self.items)

    @abstractmethod
    def _read(self) -> tuple[list[Item], Array]:
        """Items and images, in the same order. (N, H, W, C) uint8."""
