# SPDX-License-Identifier: Apache-2.0
"""A set of images somewhere on this machine, as `scm prepare` reads it.

A source lists its images when it is made, and decodes one at a time on demand. It reads nothing
from the network, runs nothing that it finds in a file and writes nothing.

Axes: H and W pixels, C channels, last: 1 grey, 3 red green blue, 4 with alpha.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

from scm_lightning.data.shards import Array
from scm_lightning.preparation.sources.decoding import (
    MAX_FILE_BYTES,
    UnreadableImageError,
    decode_image,
)


class Item(NamedTuple):
    """One image of a source.

    Attributes:
        name: unique within the source and always the same: a path within it, or archive/key.
        label: class number; 0 in a source without classes.
        split: `train`, `heldout`, or empty where the source has no split of its own.
        num_bytes: of the image as it is stored, or of the file that holds it.
    """

    name: str
    label: int
    split: str
    num_bytes: int


class ImageSource(ABC):
    """Images by number. Can be pickled, so that processes can share the work.

    Args:
        kind: what the source is, as `open_source` calls it.
        path: where it is.
        class_names: names by class number; empty in a source without classes.
        items: the images, always in the same order.

    Attributes:
        description: one line for the index: kind and path.
        max_value: the pixel value shown as white.
    """

    max_value: float = 255.0

    def __init__(
        self, kind: str, path: Path | str, class_names: Sequence[str], items: Sequence[Item]
    ) -> None:
        self.kind = kind
        self.description = f"{kind} {path}"
        self.class_names = class_names
        self.items = items

    def fingerprint(self) -> str:
        """SHA-256 over kind, class names, and name, class, split and size of every item.

        Two sources that differ in one of these differ here. Pixels are not read, nor times of
        change, which a copy or a checkout would alter: an image that was changed without changing
        its size in bytes goes unnoticed.
        """
        digest = hashlib.sha256(json.dumps([self.kind, [*self.class_names]]).encode())
        for item in self.items:
            digest.update(json.dumps(item).encode() + b"\n")
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


@final
class ArraySource(ImageSource):
    """A small set that is in memory as a whole.

    Args:
        kind: as of `ImageSource`.
        path: as of `ImageSource`.
        class_names: as of `ImageSource`.
        items: as of `ImageSource`, without their size.
        images: the images in the same order. (N, H, W, C) uint8.
        max_value: the pixel value shown as white.
    """

    def __init__(
        self,
        kind: str,
        path: Path | str,
        class_names: Sequence[str],
        items: Sequence[tuple[str, int, str]],
        images: Array,
        max_value: float = 255.0,
    ) -> None:
        super().__init__(kind, path, class_names, [Item(*i, images[0].size) for i in items])
        self.images, self.max_value = images, max_value

    def load(self, number: int) -> Array:
        """Look up one image; see `ImageSource.load`."""
        image: Array = self.images[number]
        return image


class EncodedSource(ImageSource):
    """Images as files, wherever these are kept."""

    def load(self, number: int) -> Array:
        """Read and decode one image; see `ImageSource.load`."""
        name = self.items[number].name
        try:
            content = self.read(number)
        except (OSError, ValueError) as error:
            raise UnreadableImageError(f"{name} cannot be read: {error}") from error
        return decode_image(content, name)

    @abstractmethod
    def read(self, number: int) -> bytes:
        """Content of an image's file.

        Raises:
            OSError: if it cannot be read, or has more than `MAX_FILE_BYTES`.
            ValueError: likewise.
        """


def check_size(num_bytes: int) -> None:
    """Refuse a file that is too large to be kept in memory.

    Raises:
        OSError: if it is.
    """
    if num_bytes > MAX_FILE_BYTES:
        raise OSError(f"it has {num_bytes} bytes, more than {MAX_FILE_BYTES}")
