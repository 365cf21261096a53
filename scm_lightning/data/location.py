# SPDX-License-Identifier: Apache-2.0
"""Where shards lie: a folder, or a place that webdataset can read from.

    a folder                data/emoji/shards/32
    a web server            https://host/emoji/32
    what webdataset opens   gs://, hf://, sftp:// and so on, by the tool of each
    a command               pipe:aws s3 cp s3://bucket/emoji/{name} -

A command is run by the shell. It can come from the configuration only: names in an index are plain
file names. `WDS_SECURE=1` in the environment refuses commands altogether.
"""

import logging
import re
from pathlib import Path
from threading import Timer

import webdataset

logger = logging.getLogger(__name__)

SILENCE = 4.0
"""Seconds without an answer after which the user is told."""
WAITING = (
    "%s has not answered for %.0f seconds; a web server is tried 30 times, which takes a minute or "
    "more, other places as long as their tool does"
)
REASONS = {"6": "there is no such host", "7": "the host takes no connection", "22": "no such file"}
"""Exit codes of curl."""
NAME = "{name}"
"""Stands for the file's name in a place."""


def is_remote(root: str) -> bool:
    """Whether a place is read through webdataset rather than as a folder."""
    return re.match(r"[a-z0-9]+:", root) is not None


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
    return f"{root.rstrip('/')}/{name}" if is_remote(root) else str(Path(root) / name)


def read_file(place: str) -> bytes:
    """Content of a file; a place that is silent for some seconds is waited for with a warning.

    Raises:
        OSError: if it cannot be read.
    """
    if not is_remote(place):
        return Path(place).read_bytes()
    told = Timer(SILENCE, logger.warning, (WAITING, place, SILENCE))
    told.daemon = True
    told.start()
    try:
        with webdataset.gopen(place) as stream:
            content: bytes = stream.read()
    except ValueError as error:  # no such scheme, or a command where WDS_SECURE=1 forbids it
        raise OSError(str(error)) from error
    except OSError as error:
        ended = re.search(r"\['curl'.* exit (\d+)", str(error))
        reason = REASONS.get(ended[1], f"curl ends with code {ended[1]}") if ended else str(error)
        raise OSError(reason) from error
    finally:
        told.cancel()
    return content
