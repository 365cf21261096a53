# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST's four idx files at their own size; the test images are the held-out ones."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

import numpy as np

from scm_lightning.data.fashion_mnist import FILE_PREFIXES, SIDE, read_idx
from scm_lightning.data.sources.source import Array, ImageSource, Item

CLASS_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


@final
class FashionSource(ImageSource):
    """Fashion-MNIST, 28x28 pixels, grey.

    Args:
        path: folder of the idx files.

    Raises:
        ValueError: if a file is missing, damaged or does not fit the others.
    """

    kind = "fashion"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description = f"fashion {path}"
        self.class_names = list(CLASS_NAMES)
        self.items: list[Item] = []
        self._images: Array | None = None
        for split, prefix in FILE_PREFIXES.items():
            labels = read_idx(self._file(f"{prefix}-labels-idx1"), num_axes=1)
            if not len(labels) or labels.max() >= len(CLASS_NAMES):
                raise ValueError(
                    f"the labels of {split} in {path} must be numbers below {len(CLASS_NAMES)}, "
                    "got none or others; get them again"
                )
            names = (f"{prefix}/{number:05d}" for number in range(len(labels)))
            self.items += [
                Item(name, label, split) for name, label in zip(names, labels.tolist(), strict=True)
            ]
        self._images = self._read()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None}

    def load(self, number: int) -> Array:
        """Look up one image; see `ImageSource.load`."""
        if self._images is None:  # in another process
            self._images = self._read()
        image: Array = self._images[number]
        return image

    def _sizes(self) -> Iterable[int]:
        return [SIDE * SIDE] * len(self.items)

    def _read(self) -> Array:
        """Images of all items. (N, 28, 28, 1) uint8."""
        files = [self._file(f"{prefix}-images-idx3") for prefix in FILE_PREFIXES.values()]
        images = [read_idx(file, num_axes=3) for file in files]
        counts = [sum(item.split == split for item in self.items) for split in FILE_PREFIXES]
        for file, found, count in zip(files, images, counts, strict=True):
            if found.shape != (count, SIDE, SIDE):
                raise ValueError(
                    f"{file} must hold {count} images of {SIDE}x{SIDE} pixels, one for each label, "
                    f"got shape {found.shape}; get both files again"
                )
        return np.concatenate(images)[..., None]

    def _file(self, name: str) -> Path:
        file = self.path / f"{name}-ubyte.gz"
        if not file.is_file():
            raise ValueError(
                f"{self.path} must hold {file.name}, which is missing; run apt-get install "
                "dataset-fashion-mnist, and give the folder /usr/share/datasets/fashion-mnist"
            )
        return file
