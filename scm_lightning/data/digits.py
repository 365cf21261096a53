# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits: the 1,797 images of 8x8 pixels that scikit-learn carries.

Source: E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, "Optical Recognition of
Handwritten Digits" (test part), CC BY 4.0. Pixels are whole numbers from 0 to 16.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from scm_lightning.data.index import INDEX_FILE, ShardIndex, Split
from scm_lightning.data.module import ShardDataModule
from scm_lightning.data.shards import write_shards

NUM_CLASSES = 10
HELDOUT_PER_CLASS = 36
SAMPLES_PER_SHARD = 400

Images = np.ndarray[Any, Any]


def load_digit_splits() -> dict[str, tuple[Images, Images]]:
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


def prepare_digits(folder: Path) -> None:
    """Write the digits as shards with an index. The folder appears complete or not at all.

    Raises:
        ValueError: if something else is in the place of the folder.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(
            f"{folder} must be a new folder or one with {INDEX_FILE}, got other files; give "
            "another root, or remove it"
        )
    splits = load_digit_splits()
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    scratch.chmod(0o755)
    try:
        written = {}
        for name, (images, labels) in splits.items():
            pairs = zip(images, labels.tolist(), strict=True)
            samples = track(pairs, f"writing {name} shards", total=len(images))
            shards = write_shards(samples, str(scratch / f"{name}-%06d.tar"), SAMPLES_PER_SHARD)
            written[name] = Split(shards, len(images))
        train = splits["train"][0].astype(np.float64)
        ShardIndex(
            splits=written,
            shape=train.shape[1:],
            num_classes=NUM_CLASSES,
            mean=train.mean(axis=(0, 2, 3)).tolist(),
            std=train.std(axis=(0, 2, 3)).tolist(),
            max_value=16.0,
            source="scikit-learn load_digits",
        ).write(scratch)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class Digits(ShardDataModule):
    """The digits as a data module; see `ShardDataModule` for the arguments.

    The shards are written on first use.
    """

    def prepare_data(self) -> None:
        """Write the shards if they are not there."""
        if not (self.root / INDEX_FILE).is_file():
            prepare_digits(self.root)
