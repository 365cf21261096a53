# SPDX-License-Identifier: Apache-2.0
"""Files that a run writes and can do without: its log, notes, snapshots and pictures.

None of them is worth a run: what cannot be written is reported and left out, and what stands in
place of one, or cannot be read, is given another name, so that nothing is lost.

    metrics.csv -> metrics.old-1.csv, metrics.old-2.csv, ...    ema/ -> ema.old-1/, ema.old-2/, ...
"""

import os
from collections.abc import Iterable
from pathlib import Path

from scm_lightning.saying import warn
from scm_lightning.whole_files import flush_folder, write_whole


def unused_name(path: Path) -> Path:
    """Name for what is set aside, with the first number that is free.

    Args:
        path: file or folder; it need not be there.
    """
    suffix = "" if path.is_dir() else path.suffix
    stem, number = path.name.removesuffix(suffix), 1
    while os.path.lexists(aside := path.with_name(f"{stem}.old-{number}{suffix}")):
        number += 1
    return aside


def move_together(files: Iterable[Path], folder: Path) -> Path:
    """Move files of a folder into a new one beside it.

    Args:
        files: files, or folders, in the folder.
        folder: their folder.

    Returns:
        Where they are now.
    """
    aside = unused_name(folder)
    aside.mkdir()
    for file in files:
        os.replace(file, aside / file.name)
    flush_folder(aside)
    flush_folder(folder)
    return aside


def set_aside(path: Path, reason: str) -> None:
    """Rename what cannot be used in its place, and say so.

    Args:
        path: file, folder or whatever it is.
        reason: what is wrong with it, one clause.

    Raises:
        OSError: if the folder does not allow it.
    """
    aside = unused_name(path)
    os.replace(path, aside)
    warn(f"{reason}; {path} is now {aside}")


def make_way(file: Path) -> None:
    """Set aside what stands in place of a file and is not one: writing to it could block.

    Raises:
        OSError: if the folder does not allow it.
    """
    if file.exists() and not file.is_file():
        set_aside(file, f"{file} must be a file, and is not one")


def write_result(file: Path, text: str) -> None:
    """Write a result of a run, so that it is there whole or not at all.

    Args:
        file: where; an older one is replaced.
        text: its content.

    Raises:
        OSError: if it cannot be written.
    """
    make_way(file)
    write_whole(file, text)


def say_unwritten(file: Path, error: OSError, then: str) -> None:
    """Say on one line that a file which the run can do without could not be written.

    Args:
        file: the file.
        error: what failed.
        then: what follows from it.
    """
    reason = error.strerror or error
    warn(f"{file} could not be written: {reason}; the run continues, {then}")
