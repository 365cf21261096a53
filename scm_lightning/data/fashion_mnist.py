# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST: 70,000 grey pictures of clothes and shoes, 28x28 pixels, ten classes.

    32x32: the image within a black frame of 2 pixels
    16x16: the mean of every 2x2 pixels of that, rounded

Read from the four files of the idx format that the Debian package `dataset-fashion-mnist` installs.
A file is a big-endian header (0, 0, type, number of axes; then the axes' sizes, 4 bytes each) and
the values. Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747; MIT licence.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from scm_lightning.data.image_set import ImageSet, prepare_shards
from scm_lightning.data.module import Reading, ShardDataModule
from scm_lightning.data.shards import Array

NUM_CLASSES = 10
SIDE = 28
SIZES = (16, 32)
SAMPLES_PER_SHARD = 5000
DEFAULT_SOURCE = "/usr/share/datasets/fashion-mnist"
FILE_PREFIXES = {"train": "train", "heldout": "t10k"}
UNSIGNED_BYTES = 8
"""The idx format's code of the values' type."""


def read_idx(file: Path, num_axes: int) -> Array:
    """Read a compressed file of unsigned bytes in the idx format.

    Args:
        file: path, ending in `.gz`.
        num_axes: axes that the array must have.

    Returns:
        The array, uint8.

    Raises:
        ValueError: if the file is damaged, or of another type or number of axes.
    """
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} must be a whole gzip file: {error}; get it again") from error
    magic, expected = content[:4], bytes((0, 0, UNSIGNED_BYTES, num_axes))
    if magic != expected:
        raise ValueError(
            f"{file} must be an idx file of bytes with {num_axes} axes, whose first bytes are "
            f"{expected.hex()}, got {magic.hex()}; give the files of Fashion-MNIST"
        )
    start = 4 + 4 * num_axes
    if len(content) < start:
        raise ValueError(f"{file} ends within its header; get it again")
    shape = struct.unpack(f">{num_axes}I", content[4:start])
    values = np.frombuffer(content, np.uint8, offset=start)
    if len(values) != math.prod(shape):
        raise ValueError(
            f"{file} must hold {math.prod(shape)} values by its header, got {len(values)}; get it "
            "again"
        )
    return values.reshape(shape)


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
    for split, prefix in FILE_PREFIXES.items():
        files = [source / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        for file in files:
            if not file.is_file():
                raise ValueError(
                    f"{source} must hold {file.name}, which is missing; run apt-get install "
                    f"dataset-fashion-mnist, which puts it into {DEFAULT_SOURCE}, or set source"
                )
        images, labels = read_idx(files[0], num_axes=3), read_idx(files[1], num_axes=1)
        if images.shape != (len(labels), SIDE, SIDE) or not len(labels):
            raise ValueError(
                f"{files[0]} must hold {SIDE}x{SIDE} images, one for each label of "
                f"{files[1].name}, got shape {images.shape} and {len(labels)} labels; get both "
                "again"
            )
        if labels.max() >= NUM_CLASSES:
            raise ValueError(
                f"{files[1]} must hold labels below {NUM_CLASSES}, got {labels.max()}; get it again"
            )
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
        source: str = DEFAULT_SOURCE,
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
        self.source = Path(source)
        self.size = size

    def prepare_data(self) -> None:
        """Write the shards if they are not there.

        Raises:
            ValueError: if a source file is missing, damaged or does not fit the others, or
                something else is in the place of the folder.
        """
        prepare_shards(Path(self.root), self._load, SAMPLES_PER_SHARD)

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
        splits = load_fashion_splits(self.source, self.size)
        return ImageSet(splits, NUM_CLASSES, 255.0, "Fashion-MNIST, Debian dataset-fashion-mnist")


def _classes_in_turn(labels: Array) -> Array:
    """An order in which the classes alternate, so that a run of images holds them evenly."""
    turn = np.empty(len(labels), np.int64)
    for label in range(NUM_CLASSES):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.lexsort((labels, turn))
