# SPDX-License-Identifier: Apache-2.0
"""Safetensors files: there whole or not at all, and refused in one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scm_lightning.given_files import IN_ITS_PLACE, open_regular, what_it_is
from scm_lightning.whole_files import written_whole


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file; an older one is replaced once all of this one is on the disk.

    Args:
        file: where; its folder is made if missing.
        tensors: by name; contiguous, on the CPU, no two of them in the same memory.
        metadata: what they are.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        with written_whole(file) as beside:
            beside.touch()
            mode = beside.stat().st_mode  # as the user's umask says; the library's is for one alone
            save_file(dict(tensors), beside, dict(metadata))
            beside.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{file} could not be written: {str(error).partition(' at path ')[0]}; make room, or "
            "give another place"
        ) from error


@contextmanager
def opened_tensors(file: Path) -> Iterator[Any]:
    """Open such a file; its tensors are read one by one.

    Args:
        file: the file.

    Yields:
        What safetensors opens: `metadata()`, `keys()`, `get_tensor(name)`, `get_slice(name)`.

    Raises:
        OSError: if there is none.
        ValueError: if it is damaged, or of another kind; a pipe in its place would block.
    """
    with open_regular(file) as read:
        found = what_it_is(read)
    if found in IN_ITS_PLACE:
        raise ValueError(f"{file} must be a safetensors file, got {found.name}; {found.advice}")
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file, or is damaged: {error}") from error
