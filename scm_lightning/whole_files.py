# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, also after a crash; shards, checkpoints, logs alike.

Where one process alone may write, the operating system's record lock on a file keeps others off.
"""

import fcntl
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

from scm_lightning.saying import warn

FRAME_MILLISECONDS = 150
_unfinished: set[Path] = set()
"""Files and folders of this process that are not whole yet."""


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
    _unfinished.add(beside)
    try:
        yield beside
        flush_file(beside)
        os.replace(beside, file)
        flush_folder(file.parent)
    except OSError as error:
        if str(beside) in map(str, (error.filename, error.filename2)):
            error.filename, error.filename2 = str(file), None  # the one that the user knows
        raise
    finally:
        beside.unlink(missing_ok=True)
        _unfinished.discard(beside)


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder in which others are prepared, and which is removed at the end.

    Args:
        parent: where it is to be.
        prefix: start of its name.

    Yields:
        The folder; whoever makes it whole moves it to its place.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        error.filename = str(parent)
        raise
    _unfinished.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unfinished.discard(folder)


def remove_unfinished() -> None:
    """Remove what is not whole yet, since the process ends here, and runs no `finally`."""
    for path in list(_unfinished):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flush_file(file: Path) -> None:
    """Put the content of a file on the disk."""
    with file.open("rb+") as written:
        os.fsync(written.fileno())


def write_whole(file: Path, text: str) -> None:
    """Write a text; see `written_whole`."""
    with written_whole(file) as beside:
        beside.write_text(text)


def write_picture(file: Path, draw: "Callable[[], Image | Figure | list[Image]]") -> bool:
    """Draw a picture, and write it whole; where that fails, say why on one line, and continue.

    Args:
        file: where the picture is to be, as PNG; an animated one as GIF.
        draw: draws it, or the frames of an animated one.

    Returns:
        Whether the picture is there.
    """
    try:
        picture: Any = draw()
        with written_whole(file) as beside:
            if hasattr(picture, "savefig"):
                picture.savefig(beside, format="png", dpi=120)
            elif isinstance(picture, list):
                first, *others = picture
                options = {"duration": FRAME_MILLISECONDS, "loop": 0}  # 0 is for ever
                first.save(beside, "GIF", save_all=True, append_images=others, **options)
            else:
                picture.save(beside, "PNG")
    except Exception as error:  # whatever it is: what the picture would show is computed and kept
        if os.environ.get("SCM_TRACEBACK"):
            traceback.print_exc()
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        line = f"{file} could not be drawn: {reason}; everything else continues without it"
        warn(" ".join(line.split()))
        return False
    return True


def flush_folder(folder: Path) -> None:
    """Put the names of a folder's files on the disk, so that a crash does not undo a rename."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def lock_file(file: Path) -> BinaryIO:
    """Open a file, which is made if missing, and lock it for as long as it stays open.

    The lock ends with its process, however that ends, and no process that it forks has a part in
    it. Trap: it also ends when its process closes the same file a second time.

    Raises:
        BlockingIOError: if another process has locked it.
        OSError: if it cannot be opened, or its file system has no locks.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    opened = os.fdopen(os.open(file, flags, 0o666), "r+b", buffering=0)
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        opened.close()
        if isinstance(error, PermissionError):  # what some systems say
            raise BlockingIOError(error.errno, error.strerror) from error
        raise
    return opened
