# SPDX-License-Identifier: Apache-2.0
"""Room on the disk for shards, and errors in one line where there is too little."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from scm_lightning.preparation.plan import PlannedShard, Recipe

SAMPLE_BYTES, CAPTION_BYTES, SHARD_BYTES = 2304, 2304, 2**14
"""Bytes beside the numbers: headers and padding of a sample, and of a caption with its tokens; a
shard's end and its record."""


def needed_bytes(shards: Sequence[PlannedShard], recipe: Recipe) -> int:
    """Size that shards will have, at most; it is little more."""
    content, captions = recipe.content, recipe.captions
    sample = math.prod(content.stored_shape) * np.dtype(content.dtype).itemsize + SAMPLE_BYTES
    images = sum(len(each.items) * sample + SHARD_BYTES for each in shards)
    if captions is None:
        return images
    return images + sum(
        len(each.items) * CAPTION_BYTES + captions.num_bytes(each.items) for each in shards
    )


def refuse_small_disk(folder: Path, shards: Sequence[PlannedShard], recipe: Recipe) -> None:
    """Refuse a disk without room for what is missing, before the work.

    Raises:
        ValueError: if there is too little.
    """
    needed, free = needed_bytes(shards, recipe), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder} needs about {megabytes(needed)} more, and {megabytes(free)} are free there; "
            "make room, or give a folder on another disk"
        )


@contextmanager
def explained_errors(folder: Path, needed: int, num_workers: int) -> Iterator[None]:
    """Turn what the operating system says, or torch of a lost worker, into one line.

    Args:
        folder: folder that is written.
        needed: bytes of all that is to be written.
        num_workers: processes that load images.

    Raises:
        ValueError: in place of an OSError, or of the error that torch raises anywhere.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}; give a "
            f"folder that can be written, with room for about {megabytes(needed)} in all, or run "
            "the same command again once this one can: finished shards are kept"
        ) from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ValueError(
            "a worker process was ended from outside, often for lack of memory; run the same "
            f"command again, with fewer workers than {num_workers} if it recurs"
        ) from error


def megabytes(number: int) -> str:
    """Text for a number of bytes. One MB is a million bytes."""
    return f"{number / 1e9:,.2f} GB" if number >= 1e9 else f"{number / 1e6:,.2f} MB"
