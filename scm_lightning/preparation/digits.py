# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits: the 1,797 images of 8x8 pixels that scikit-learn carries.

Source: E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, "Optical Recognition of
Handwritten Digits" (test part), CC BY 4.0. Pixels are whole numbers from 0 to 16.
"""

import os

import numpy as np

from scm_lightning.data.index import INDEX_FILE
from scm_lightning.data.location import folder_to_write
from scm_lightning.data.module import ShardDataModule
from scm_lightning.data.shards import Array
from scm_lightning.preparation.content import Pixels
from scm_lightning.preparation.engine import prepare
from scm_lightning.preparation.folder import refuse_foreign_files
from scm_lightning.preparation.plan import Recipe
from scm_lightning.preparation.sources.source import ArraySource
from scm_lightning.preparation.transform import ImageTransform
from scm_lightning.whole_files import scratch_folder

NUM_CLASSES = 10
HELDOUT_PER_CLASS = 36
SAMPLES_PER_SHARD = 400
SHAPE = (1, 8, 8)


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


def digit_source(made_by: str, splits: dict[str, tuple[Array, Array]]) -> ArraySource:
    """A source of digits, or of clips of them.

    Args:
        made_by: what has made them.
        splits: for `train` and `heldout`: arrays, (N, C, ...) uint8 from 0 to 16, and labels, (N,).
    """
    # Held-out images first, in whose order the classes come in turn already.
    splits = dict(reversed(splits.items()))
    arrays = np.concatenate([arrays for arrays, _ in splits.values()])
    items = [
        (f"{split}/{n}", int(label), split)
        for split, (_, labels) in splits.items()
        for n, label in enumerate(labels)
    ]
    names = [str(label) for label in range(NUM_CLASSES)]
    return ArraySource("scikit-learn", made_by, names, items, np.moveaxis(arrays, 1, -1), 16.0)


class Digits(ShardDataModule):
    """The digits as a data module; see `ShardDataModule` for the arguments.

    The shards are written on first use. Their folder appears complete or not at all, and processes
    that write it at once all succeed: those that come later drop their own.
    """

    def prepare_data(self) -> None:
        """Write the shards if they are not there.

        Raises:
            ValueError: if something else is in place of the folder, or it is a command or
                address.
        """
        folder = folder_to_write(self.root)
        if (folder / INDEX_FILE).is_file():
            return
        refuse_foreign_files(folder)
        recipe = self._recipe()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder.parent, f".{folder.name}-") as scratch:
            scratch.chmod(0o755)
            prepare(recipe, scratch)
            try:
                os.replace(scratch, folder)
            except OSError:  # replacing a folder that is not empty: another process was faster
                if not (folder / INDEX_FILE).is_file():
                    raise

    def _recipe(self) -> Recipe:
        source = digit_source("load_digits", load_digit_splits())
        return Recipe(
            source, ImageTransform(), Pixels(SHAPE), samples_per_shard=SAMPLES_PER_SHARD, seed=None
        )
