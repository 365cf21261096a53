# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a folder: `.lock`, which names the process that trains there.

The lock is `lock_file`'s on that file, not the file, which stays beside what a run has saved.
"""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from scm_lightning.given_files import open_regular
from scm_lightning.saying import warn
from scm_lightning.whole_files import lock_file

NAME = ".lock"
MAX_BYTES = 500


def lock_folder(folder: Path) -> BinaryIO | None:
    """Lock a folder for this process.

    Args:
        folder: the folder; made if missing.

    Returns:
        What is to be closed to unlock it; None if its file system has no locks, which is said.

    Raises:
        ValueError: if another process has locked it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"checkpoints must go into a folder, and {folder} cannot be made: {error.strerror}; "
            "give another trainer.default_root_dir"
        ) from error
    file = folder / NAME
    try:
        try:
            opened = lock_file(file)
        except BlockingIOError:
            with open_regular(file) as written:
                said = written.read(MAX_BYTES).decode(errors="replace")
            owner = "".join(filter(str.isprintable, said)) or "another process"
            raise ValueError(
                f"one run at a time can train in {folder}, where {owner} does; wait until it has "
                "ended, or give this run another trainer.default_root_dir"
            ) from None
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        opened.truncate(0)
        opened.write(f"process {os.getpid()} on {socket.gethostname()} since {now}".encode())
    except OSError as error:
        warn(f"{folder} cannot be locked against a second run in it: {error.strerror}")
        return None
    return opened


def empty_folders(folder: Path) -> list[Path]:
    """A folder and the run's, above it, as far as they are empty or missing."""
    both = (folder, folder.parent)
    return [each for each in both if not each.is_dir() or not any(each.iterdir())]


def remove_unused(folder: Path, empty: Sequence[Path]) -> None:
    """Remove a locked folder in which nothing was saved: a run that was refused leaves none.

    Args:
        folder: the folder.
        empty: what `empty_folders` found before it was locked.
    """
    with suppress(OSError):
        if folder in empty and [each.name for each in folder.iterdir()] == [NAME]:
            (folder / NAME).unlink()
            for each in empty:
                each.rmdir()
