# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, also after a crash; shards, checkpoints, logs alike."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Write a file beside its place, and move it there once all of it is on the disk.

    Whoever reads sees the whole file or none, also after a crash.

    Args:
        file: where the file is to be; folders are made, an older file is replaced.

    Yields:
        Where to write it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        yield beside
        with beside.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(beside, file)
        flush_folder(file.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a text; see `written_whole`."""
    with written_whole(file) as beside:
        beside.write_text(text)


def flush_folder(folder: Path) -> None:
    """Put the names of a folder's files on the disk, so that a crash does not undo a rename."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
