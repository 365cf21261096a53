# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as one file: there whole or not at all, with a checksum that every reader compares.

    file    = zip archive, as torch.save writes it | comment of the archive
    comment = "scm_lightning step " 12 digits " sha256 " 64 hex digits
    digits  = SHA-256 of all bytes before them

The checksum is in the file and not beside it: one rename puts both in place, so that no crash comes
between them, and a copy takes it along. Traps: torch.load does not look at the checksums that a zip
archive has, so a flipped bit is silently a changed weight. Without our comment the end of an
archive, 22 bytes, says that it has none: an older file, or one of another program, which cannot be
checked. Anything else at the end is damage; no single flipped bit makes one look like the other.
"""

import hashlib
import os
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

from scm_lightning.whole_files import written_whole

END_OF_ARCHIVE = b"PK\x05\x06"
END_SIZE = 22
"""Bytes of the end of a zip archive: signature, counts, and last the length of the comment."""
COMMENT = re.compile(rb"scm_lightning step (\d{12}) sha256 ([0-9a-f]{64})")
COMMENT_SIZE = 19 + 12 + 8 + 64
HEX_SIZE = 64
BLOCK = 1 << 22
REFUSED = re.compile(
    r"(?:WeightsUnpickler error: |\n(?=Trying to load ))([^\n]*?)(?:\. Please| by default|\.?\n|$)"
)
"""Pattern of what is wrong with a file, before torch's advice to load it unrestricted."""
SETTLED_NS = 2_000_000_000
"""Age from which a file's time would tell a change; clocks of file systems are coarse."""
_KNOWN_SHA256: dict[tuple[int, ...], str] = {}


class _Hashed:
    """Stream for torch.save: all bytes hashed and counted, the last 22 held back.

    An error is raised by `close`, since torch.save does not expect one.

    Args:
        opened: where the bytes go.
    """

    def __init__(self, opened: IO[bytes]) -> None:
        self.opened = opened
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.held = b""
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Pass on all but the last bytes."""
        view = memoryview(data).cast("B")
        self.num_bytes += len(view)
        if len(view) < END_SIZE:
            joined = self.held + bytes(view)
            self._pass_on(joined[:-END_SIZE])
            self.held = joined[-END_SIZE:]
        else:
            self._pass_on(self.held)
            self._pass_on(view[:-END_SIZE])
            self.held = bytes(view[-END_SIZE:])
        return len(view)

    def flush(self) -> None:
        """Leave the file alone: it is flushed when it is whole."""

    def close(self, step: int) -> None:
        """Write the end of the archive and the comment."""
        assert self.held.startswith(END_OF_ARCHIVE), "torch.save ends with the end of an archive"
        head = b"scm_lightning step %012d sha256 " % step
        self._pass_on(self.held[:-2] + struct.pack("<H", COMMENT_SIZE) + head)
        self._pass_on(self.sha256.hexdigest().encode())
        if self.error is not None:
            raise self.error

    def _pass_on(self, data: bytes | memoryview) -> None:
        if self.error is not None:
            return
        self.sha256.update(data)
        try:
            self.opened.write(data)
        except OSError as error:
            self.error = error


def write_archive(content: Mapping[str, Any], file: Path) -> None:
    """Write a checkpoint; an older one of that name is replaced once all of it is on the disk.

    Args:
        content: what is to be saved, with the entry `global_step`.
        file: where, in a folder that exists.

    Raises:
        OSError: if it cannot be written; what was there before is left as it was.
        ValueError: if it could not be loaded without running code.
    """
    num_bytes = 0
    try:
        if not file.parent.is_dir():
            raise FileNotFoundError(2, f"the folder {file.parent} is gone")
        with written_whole(file) as beside:
            with beside.open("wb") as opened:
                hashed = _Hashed(opened)
                torch.save(content, hashed)  # type: ignore[arg-type]  # it needs no more of a file
                num_bytes = hashed.num_bytes + COMMENT_SIZE
                hashed.close(int(content["global_step"]))
            _check_loadable(beside, file)
    except OSError as error:
        raise unwritten(file, error.strerror or str(error), num_bytes) from error


class DamagedError(ValueError):
    """Fault of a checkpoint, worded to follow its path."""


def archive_step(opened: BinaryIO) -> int | None:
    """Optimizer steps that a file claims to hold, without looking at the rest of it.

    Args:
        opened: the file.

    Returns:
        The steps; None if the file is damaged where they stand.
    """
    try:
        comment, is_plain = _comment(opened)
        if comment is not None:
            return int(comment[1])
        return int(load_tensors(opened, mmap=True)["global_step"]) if is_plain else None
    except OSError:
        raise
    except Exception:  # whatever a file of another program holds
        return None


def read_archive(opened: BinaryIO, mmap: bool = False) -> tuple[dict[str, Any], bool]:
    """Read a file that torch.save wrote, checked and without running code from it.

    Args:
        opened: the file: what is checked is what is read, though a run may replace it meanwhile.
        mmap: whether tensors are read from the file only when they are used.

    Returns:
        What was saved, tensors on the CPU; and whether there is a checksum, which it then fits.

    Raises:
        DamagedError: if it is damaged, or cannot be read.
    """
    comment, is_plain = _comment(opened)
    if comment is None and not is_plain:
        raise DamagedError("is not a checkpoint, or is damaged")
    size = os.fstat(opened.fileno()).st_size
    if comment and file_sha256(opened, size - HEX_SIZE).encode() != comment[2]:
        raise DamagedError("is damaged: its content does not fit its checksum")
    try:
        return load_tensors(opened, mmap), comment is not None
    except ValueError as error:
        raise DamagedError(f"cannot be read as a checkpoint: {error}") from error


def file_sha256(opened: BinaryIO, num_bytes: int) -> str:
    """SHA-256 of the first bytes of a file, computed once per process as long as it is the same.

    Args:
        opened: the file.
        num_bytes: how many of its bytes.

    Returns:
        64 hex digits.
    """
    stat = os.fstat(opened.fileno())
    state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, num_bytes)
    if state in _KNOWN_SHA256:
        return _KNOWN_SHA256[state]
    sha256 = hashlib.sha256()
    opened.seek(0)
    while num_bytes > 0 and (block := opened.read(min(BLOCK, num_bytes))):
        sha256.update(block)
        num_bytes -= len(block)
    if time.time_ns() - stat.st_mtime_ns > SETTLED_NS:
        _KNOWN_SHA256[state] = sha256.hexdigest()
    return sha256.hexdigest()


def unwritten(path: Path, reason: str, num_bytes: int) -> OSError:
    """Make the error for a checkpoint that could not be written.

    Args:
        path: the checkpoint.
        reason: what failed.
        num_bytes: what it needs; 0 if that is not known.
    """
    needed = f", where {num_bytes:,} bytes are needed" if num_bytes else ""
    return OSError(
        f"the checkpoint {path} could not be written: {reason}{needed}; earlier checkpoints are as "
        "they were: make room, or give another folder, and run the same command again"
    )


def load_tensors(opened: BinaryIO, mmap: bool = False) -> Any:
    """Read a file of tensors by torch's restricted unpickler, which cannot act.

    Args:
        opened: the file; it is read from its beginning, also if another has its name by now.
        mmap: whether tensors are read from the file only when they are used.

    Returns:
        What was saved; tensors on the CPU.

    Raises:
        ValueError: if it is damaged, or holds what could run code; the message is the reason alone.
    """
    opened.seek(0)
    by_number = f"/dev/fd/{opened.fileno()}" if mmap else ""  # torch maps by a name only
    mmap = mmap and os.path.exists(by_number)
    source: BinaryIO | str = by_number if mmap else opened
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    # Whatever wrong bytes come to: the unpickler can fail in any way, but not act.
    except Exception as error:
        found = REFUSED.search(str(error))
        reason = found[1] if found else str(error).partition("\n")[0]
        raise ValueError(reason or type(error).__name__) from error


def _comment(opened: BinaryIO) -> tuple[re.Match[bytes] | None, bool]:
    """Our comment, if it is whole; and whether the file ends as an archive without any."""
    size = os.fstat(opened.fileno()).st_size
    opened.seek(max(size - END_SIZE - COMMENT_SIZE, 0))
    end = opened.read(END_SIZE + COMMENT_SIZE)
    length = struct.pack("<H", COMMENT_SIZE)
    fits = end.startswith(END_OF_ARCHIVE) and end[END_SIZE - 2 : END_SIZE] == length
    comment = COMMENT.fullmatch(end[END_SIZE:]) if fits else None
    last = end[-END_SIZE:]
    return comment, last.startswith(END_OF_ARCHIVE) and last.endswith(b"\0\0")


def _check_loadable(beside: Path, file: Path) -> None:
    """Refuse what a callback or module has put into the checkpoint and nobody could load."""
    try:
        with beside.open("rb") as opened:
            load_tensors(opened, mmap=True)
    except ValueError as error:
        raise ValueError(
            f"the checkpoint {file} must hold tensors, numbers and strings only, in lists, tuples "
            f"and dictionaries, or it could not be loaded: {error}; change what the module or a "
            "callback saves"
        ) from error
