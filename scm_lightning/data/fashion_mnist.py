# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST: 70,000 grey pictures of clothes and shoes, 28x28 pixels, ten classes.

    32x32: the image within a black frame of 2 pixels
    16x16: the mean of every 2x2 pixels of that, rounded

Read from the four files that the Debian package `dataset-fashion-mnist` installs.
Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747; MIT licence.
"""

from pathlib import Path

import numpy as np

from scm_lightning.data.image_set import ImageSet, prepare_shards
from scm_lightning.data.module import Reading, ShardDataModule
from scm_lightning.data.shards import Array
from scm_lightning.data.sources.fashion import CLASS_NAMES, DEBIAN_FOLDER, SIDE, read_fashion
from scm_lightning.given_files import given_path

SIZES = (16, 32)
SAMPLES_PER_SHARD = 5000


def resize(images: Array, size: int) -> Array:
    """Frame images in black, and halve them for size 16. (N, 28, 28) to (N, size, size), uint8."""
    margin = (SIZES[-1] - SIDE) // 2
    framed = np.pad(images, ((0, 0), (margin, margin), (margin, margin)))
    if size == SIZES[-1]:
        return framed
    sums: Array = framed.reshape(-1, size, 2, size, 2).sum(axis=(2, 4), dtype=np.uint16)
    return ((sums + 2) // 4).astype(np.uint8)


def load_fashion_splits(source: Path, size: int) -> dict[str, tuple[Array, Array]]:
    """Read the training images and the test images, which are the held-out ones.

    Args:
        source: folder of the idx files.
        size: side of the images, 16 or 32.

    Returns:
        For `train` (60,000) and `heldout` (10,000, classes in turn): images, (N, 1, size, size)
        uint8, and labels, (N,).

    Raises:
        ValueError: if a file is missing, damaged or does not fit the others.
    """
    splits = {}
    for split in ("train", "heldout"):
        images, labels = read_fashion(source, split)
        order = _classes_in_turn(labels)
        splits[split] = (resize(images[order], size)[:, None], labels[order])
    return splits


class FashionMNIST(ShardDataModule):
    """Fashion-MNIST as a data module. The shards are written on first use.

    Args:
        sigma_data: see `ShardDataModule`, as for all arguments but the last two.
        root: folder of the shards, one for each size.
        batch_size: training samples per batch and process.
        sample_batch_size: samples drawn at a time in validation, test and predict.
        num_workers: loader processes; 0 loads in the training process.
        num_val_samples: samples drawn at every validation.
        num_test_samples: samples drawn by `scm test`; by default as many as there are held out.
        num_predict_samples: samples drawn by `scm predict`.
        sample_seed: seed of all drawn samples.
        shuffle_seed: seed of the order of the training data.
        use_labels: whether the classes are handed on.
        horizontal_flip: whether every other training image, by chance, is mirrored left to right.
        reading: how shards are read, and what is done with damaged ones.
        source: folder of the idx files; read on first use only.
        size: side of the images, 16 or 32. Pixels.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        sigma_data: float,
        root: str,
        batch_size: int = 128,
        sample_batch_size: int = 500,
        num_workers: int = 0,
        num_val_samples: int = 500,
        num_test_samples: int = 10_000,
        num_predict_samples: int = 100,
        sample_seed: int = 0,
        shuffle_seed: int = 0,
        use_labels: bool = True,
        horizontal_flip: bool = False,
        reading: Reading = Reading(),
        source: str = DEBIAN_FOLDER,
        size: int = 32,
    ) -> None:
        super().__init__(
            sigma_data,
            root,
            batch_size,
            sample_batch_size,
            num_workers,
            num_val_samples,
            num_test_samples,
            num_predict_samples,
            sample_seed,
            shuffle_seed,
            use_labels,
            horizontal_flip,
            reading,
        )
        if size not in SIZES:
            raise ValueError(f"Fashion-MNIST comes in the sizes {SIZES}, got {size}; choose one")
        self.source = Path(given_path(source))
        self.size = size

    def prepare_data(self) -> None:
        """Write the shards if they are not there.

        Raises:
            ValueError: if a source file is missing, damaged or does not fit the others, or
                something else is in the place of the folder.
        """
        prepare_shards(self.root, self._load, SAMPLES_PER_SHARD)

    def setup(self, stage: str) -> None:
        """Read the index.

        Raises:
            ValueError: if the shards are of another size.
        """
        super().setup(stage)
        if self.index.shape != (1, self.size, self.size):
            raise ValueError(
                f"{self.root} must hold shards of size {self.size}, got images of shape "
                f"{self.index.shape}; give another root, or set size"
            )

    def _load(self) -> ImageSet:
        return ImageSet(
            load_fashion_splits(self.source, self.size),
            num_classes=len(CLASS_NAMES),
            max_value=255.0,
            source="Fashion-MNIST, Debian dataset-fashion-mnist",
            class_names=list(CLASS_NAMES),
        )


def _classes_in_turn(labels: Array) -> Array:
    """An order in which the classes alternate, so that a run of images holds them evenly."""
    turn = np.empty(len(labels), np.int64)
    for label in range(len(CLASS_NAMES)):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.lexsort((labels, turn))
