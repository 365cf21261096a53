# SPDX-License-Identifier: Apache-2.0
"""Clips as samples: the images of a folder in the order of their names, or an animated image.

    CLIP/000.png, CLIP/001.png, ...     the frames of one clip, below folders of classes or not
    CLIP.gif, CLIP.webp                 likewise, if the first file of the source is animated

A clip is its first frames. Its class and split are those of its first frame; where every class
has a single clip, the folders are clips and no classes.
"""

import re
from collections import Counter
from pathlib import PurePosixPath
from typing import final

from scm_lightning.data.shards import Array
from scm_lightning.preparation.sources.decoding import (
    UnreadableImageError,
    decode_frames,
    is_animated,
    stacked,
)
from scm_lightning.preparation.sources.source import EncodedSource, ImageSource, Item

DIGITS = re.compile(r"(\d+)")


@final
class ClipSource(ImageSource):
    """Clips whose frames are images of another source.

    Args:
        images: the source of the frames.
        num_frames: frames F of a clip.

    Raises:
        ValueError: if the source has no files of images, or the number is below 2.
    """

    def __init__(self, images: ImageSource, num_frames: int) -> None:
        if not isinstance(images, EncodedSource):
            raise ValueError(
                f"frames are taken from files of images, got {images.description}; leave frames "
                "out, or give a folder"
            )
        if num_frames < 2:
            raise ValueError(f"frames must be at least 2, got {num_frames}; leave it out for none")
        self.images, self.num_frames = images, num_frames
        self._animated = is_animated(images.read(0))
        self.max_value = images.max_value
        clips: dict[str, list[int]] = {}
        for number, item in enumerate(images.items):
            clips.setdefault(self._clip(item.name), []).append(number)
        self._frames = [
            sorted(numbers, key=lambda n: _in_order(images.items[n].name))
            for numbers in clips.values()
        ]
        firsts = [images.items[numbers[0]] for numbers in self._frames]
        counts = Counter(first.label for first in firsts)
        class_names = images.class_names if max(counts.values()) > 1 else []
        items = [
            Item(
                name,
                first.label if class_names else 0,
                first.split,
                sum(images.items[n].num_bytes for n in numbers),
            )
            for name, first, numbers in zip(clips, firsts, self._frames, strict=True)
        ]
        super().__init__(f"clips of {images.kind}", "", class_names, items)
        self.description = f"clips of {num_frames} frames of {images.description}"

    def load(self, number: int) -> Array:
        """Decode the frames of one clip.

        Args:
            number: of the item.

        Returns:
            The clip. (F, H, W, C) uint8, C in {1, 3, 4}.

        Raises:
            UnreadableImageError: if it has too few frames, of different sizes, or damaged ones.
        """
        name, numbers = self.items[number].name, self._frames[number]
        if self._animated:
            try:
                return decode_frames(self.images.read(numbers[0]), name, self.num_frames)
            except OSError as error:
                raise UnreadableImageError(f"{name} cannot be read: {error}") from error
        if len(numbers) < self.num_frames:
            raise UnreadableImageError(
                f"{name} must have {self.num_frames} frames, got {len(numbers)}"
            )
        return stacked([self.images.load(n) for n in numbers[: self.num_frames]], name)

    def _clip(self, name: str) -> str:
        return name if self._animated else str(PurePosixPath(name).parent)


def _in_order(name: str) -> list[str]:
    """Put 2.png before 10.png: a key to sort by."""
    return [part.rjust(20, "0") if part.isdigit() else part for part in DIGITS.split(name)]
