# SPDX-License-Identifier: Apache-2.0
r"""Fashion-MNIST's four files, in a black frame to 32x32; the test images are the held-out ones.

They are of the idx format: a big-endian header (0, 0, type, number of axes; then the axes' sizes,
4 bytes each) and the values, compressed by gzip.
Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747; MIT licence.
"""

import math
import struct
from pathlib import Path

import numpy as np

from scm_lightning.data.shards import Array
from scm_lightning.preparation.sources.gzipped import read_gzip
from scm_lightning.preparation.sources.source import ArraySource

CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
SIDE, MARGIN = 28, 2
FILE_PREFIXES = {"train": "train", "heldout": "t10k"}
DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
"""Folder of the files that the Debian package `dataset-fashion-mnist` installs."""
MAX_IDX_BYTES = 1 << 26
"""Largest file; 60,000 images are 47 million bytes."""
UNSIGNED_BYTES = 8
"""The idx format's code of the values' type."""


def open_fashion(path: Path) -> ArraySource:
    """Read Fashion-MNIST: grey images of 32x32 pixels.

    Args:
        path: folder of the idx files.

    Raises:
        ValueError: if a file is missing, damaged or does not fit the others.
    """
    found, items = [], []
    for split, prefix in FILE_PREFIXES.items():
        files = [path / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        for file in files:
            if not file.is_file():
                raise ValueError(
                    f"{path} must hold {file.name}, which is missing; run apt-get install "
                    f"dataset-fashion-mnist, which puts it into {DEBIAN_FOLDER}, and give that"
                )
        images, labels = read_idx(files[0], num_axes=3), read_idx(files[1], num_axes=1).tolist()
        largest = max(labels, default=len(CLASS_NAMES))
        if images.shape != (len(labels), SIDE, SIDE) or largest >= len(CLASS_NAMES):
            raise ValueError(
                f"{files[0]} must hold {SIDE}x{SIDE} images, one for each label of {files[1]}, "
                f"which are below {len(CLASS_NAMES)}, got shape {images.shape} and {len(labels)} "
                f"labels up to {largest}; get both again"
            )
        found.append(np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))))
        items += [(f"{prefix}/{n:05d}", k, split) for n, k in enumerate(labels)]
    return ArraySource("fashion", path, CLASS_NAMES, items, np.concatenate(found)[..., None])


def read_idx(file: Path, num_axes: int) -> Array:
    """Read a compressed file of unsigned bytes in the idx format.

    Args:
        file: path, ending in `.gz`.
        num_axes: axes that the array must have.

    Returns:
        The array, uint8.

    Raises:
        ValueError: if the file is damaged, too large, or of another type or number of axes.
    """
    content, start = read_gzip(file, MAX_IDX_BYTES), 4 + 4 * num_axes
    magic, *shape = struct.unpack(f">{1 + num_axes}I", content[:start].ljust(start, b"\0"))
    if magic != UNSIGNED_BYTES * 256 + num_axes or len(content) != start + math.prod(shape):
        raise ValueError(
            f"{file} must be an idx file of bytes with {num_axes} axes, got {len(content)} bytes "
            f"that begin with {content[:start].hex()}; give the files of Fashion-MNIST"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
