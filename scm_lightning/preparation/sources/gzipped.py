# SPDX-License-Identifier: Apache-2.0
"""Gzip files, unpacked into memory up to a size: a small file can unpack to any."""

import gzip
import zlib
from pathlib import Path

from scm_lightning.given_files import open_regular


def read_gzip(file: Path, max_bytes: int) -> bytes:
    """Unpack a gzip file.

    Args:
        file: the file.
        max_bytes: the most that a file of its kind unpacks to.

    Returns:
        The content.

    Raises:
        ValueError: if it cannot be read, is damaged, or unpacks to more.
    """
    try:
        with open_regular(file) as opened, gzip.GzipFile(fileobj=opened) as unpacked:
            content = unpacked.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} must be a whole gzip file: {error}; get it again") from error
    if len(content) > max_bytes:
        raise ValueError(
            f"{file} must unpack to at most {max_bytes:,} bytes, got more; give the file as it is "
            "handed out"
        )
    return content
