# SPDX-License-Identifier: Apache-2.0
r"""Room on the disk for shards, and what went wrong when there is none, in one line.

A sample is two members of a tar file, each with a header of 512 bytes and rounded up to 512; an
array has 128 bytes before its numbers; a file ends with two empty blocks, rounded up to 10,240:

    bytes of a sample = 512 + up_512(128 + numbers) + 512 + 512
    bytes of a shard  = up_10240(samples * bytes of a sample + 1024)

Records, plan and index come on top, for which there is an allowance.
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from scm_lightning.preparation.content import ShardContent
from scm_lightning.preparation.plan import Plan, PlannedShard

BLOCK, RECORD, ARRAY_HEADER = 512, 10240, 128
ALLOWANCE, SHARD_ALLOWANCE = 2**16, 2**13


def shard_bytes(planned: PlannedShard, content: ShardContent) -> int:
    """Size that a shard will have if all its images can be read."""
    numbers = math.prod(content.stored_shape) * np.dtype(content.dtype).itemsize
    sample = BLOCK + _up(ARRAY_HEADER + numbers, BLOCK) + 2 * BLOCK
    return _up(len(planned.items) * sample + 2 * BLOCK, RECORD)


def refuse_small_disk(folder: Path, plan: Plan, content: ShardContent) -> None:
    """Refuse a disk without room for what is missing, before the work.

    Raises:
        ValueError: if there is too little.
    """
    needed, free = _missing_bytes(folder, plan, content), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder} needs about {megabytes(needed)} more, and {megabytes(free)} are free there; "
            "make room, or give a folder on another disk"
        )


@contextmanager
def explained_errors(folder: Path, plan: Plan, content: ShardContent) -> Iterator[None]:
    """Turn what the operating system says about the folder into one line.

    Raises:
        ValueError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        needed = megabytes(_missing_bytes(folder, plan, content))
        raise ValueError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}; give a "
            f"folder that can be written, with room for about {needed} more, or run the same "
            "command again once this one can: finished shards are kept"
        ) from error


def megabytes(number: int) -> str:
    """A number of bytes to read. One MB is a million bytes."""
    return f"{number / 1e9:,.2f} GB" if number >= 1e9 else f"{number / 1e6:,.2f} MB"


def _missing_bytes(folder: Path, plan: Plan, content: ShardContent) -> int:
    """Bytes that are still to be written, about."""
    return ALLOWANCE + sum(
        shard_bytes(planned, content) + SHARD_ALLOWANCE
        for planned in plan.shards
        if not (folder / planned.name).exists()
    )


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
