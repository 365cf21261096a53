# SPDX-License-Identifier: Apache-2.0
"""Places of shards: a folder, or one that webdataset can read from.

    a folder                data/emoji/shards/32
    a web server            https://host/emoji/32
    what webdataset opens   gs://, hf://, sftp:// and so on, by the tool of each
    a command               pipe:aws s3 cp s3://bucket/emoji/{name} -

A command is run by the shell, to read. It can come from the configuration only: names in an index
are plain file names. `WDS_SECURE=1` in the environment refuses commands altogether. Shards are
written into a folder and nowhere else.
"""

import os
import re
from pathlib import Path

import webdataset

from scm_lightning.given_files import PLACE, given_path, read_regular

REASONS = {"6": "there is no such host", "7": "the host takes no connection", "22": "no such file"}
"""Exit codes of curl."""
NAME = "{name}"
"""Placeholder for the file's name in a place."""


def is_remote(root: str) -> bool:
    """Tell whether a place is read through webdataset rather than as a folder."""
    return PLACE.match(root) is not None


def folder_to_write(folder: str | os.PathLike[str]) -> Path:
    """Spell out a folder that shards are to be written into.

    Raises:
        ValueError: if it reads as a place where nothing can be written, such as a command.
    """
    given = Path(given_path(folder))
    if is_remote(str(given)):
        raise ValueError(f"shards must be written into a folder, got {given}; give a folder")
    return given


def place_of(root: str, name: str) -> str:
    """Path or address of a file.

    Args:
        root: folder or place.
        name: plain name of the file.

    Raises:
        ValueError: if the name is not plain.
    """
    if not re.fullmatch(r"[\w][\w.+=@-]*", name):
        raise ValueError(
            f"the files of {root} must have plain names, got {name!r}; prepare the shards again"
        )
    if NAME in root:
        return root.replace(NAME, name)
    # A `Path` would make a command of ./pipe:NAME.
    return f"{root.rstrip('/')}/{name}" if is_remote(root) else os.path.join(root, name)


def reason_of(error: Exception) -> str:
    """Say in words why a file could not be read: webdataset names its arguments and an exit code.

    Args:
        error: what was raised.
    """
    ended = re.search(r"(\['curl')?.* exit (\d+)", str(error))
    if not ended:
        return str(error)
    if ended[1]:
        return REASONS.get(ended[2], f"curl ends with code {ended[2]}")
    return f"the command ends with code {ended[2]}"


def read_file(place: str, max_bytes: int) -> bytes:
    """Content of a file.

    Args:
        place: path or address.
        max_bytes: the most that a file of its kind can have.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it has more bytes, or is a pipe or device.
    """
    if not is_remote(place):
        return read_regular(place, max_bytes)
    try:
        with webdataset.gopen(place) as stream:
            content: bytes = stream.read(max_bytes + 1)
    except ValueError as error:  # no such scheme, or a command where WDS_SECURE=1 forbids it
        raise OSError(str(error)) from error
    except OSError as error:
        raise OSError(reason_of(error)) from error
    if len(content) > max_bytes:
        raise ValueError(f"{place} must have at most {max_bytes:,} bytes, got more")
    return content
