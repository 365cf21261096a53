# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits: the 1,797 images of 8x8 pixels that scikit-learn carries.

Source: E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, "Optical Recognition of
Handwritten Digits" (test part), CC BY 4.0. Pixels are whole numbers from 0 to 16.
"""

from pathlib import Path

import numpy as np

from scm_lightning.data.image_set import ImageSet, prepare_shards
from scm_lightning.data.module import ShardDataModule
from scm_lightning.data.shards import Array

NUM_CLASSES = 10
HELDOUT_PER_CLASS = 36
SAMPLES_PER_SHARD = 400


def load_digit_splits() -> dict[str, tuple[Array, Array]]:
    """Split the digits into training and held-out images, always in the same way.

    Returns:
        For `train` (1,437) and `heldout` (360, as many of every class): images, (N, 1, 8, 8) uint8
        from 0 to 16, and labels, (N,).
    """
    from sklearn.datasets import load_digits  # slow to import, needed on first use only

    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    of_class = [order[digits.target[order] == label] for label in range(NUM_CLASSES)]
    # Interleaved by class, so that every block of ten held-out images holds each digit.
    heldout = np.stack([members[:HELDOUT_PER_CLASS] for members in of_class], axis=1).ravel()
    train = np.setdiff1d(order, heldout)
    return {
        "train": (images[train], digits.target[train]),
        "heldout": (images[heldout], digits.target[heldout]),
    }


def prepare_digits(folder: Path | str) -> None:
    """Write the digits as shards with an index, unless they are there.

    Raises:
        ValueError: if something else is in the place of the folder, or it is a command or address.
    """

    def load() -> ImageSet:
        return ImageSet(load_digit_splits(), NUM_CLASSES, 16.0, "scikit-learn load_digits")

    prepare_shards(folder, load, SAMPLES_PER_SHARD)


class Digits(ShardDataModule):
    """The digits as a data module; see `ShardDataModule` for the arguments.

    The shards are written on first use.
    """

    def prepare_data(self) -> None:
        """Write the shards if they are not there."""
        prepare_digits(self.root)
