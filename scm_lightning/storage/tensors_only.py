# SPDX-License-Identifier: Apache-2.0
"""Files that torch.save wrote, read without running code, and refused in one way.

torch's restricted unpickler builds tensors, numbers, strings and containers only. Of damaged bytes
it makes errors of a dozen types. Trap: the message for a file that it refuses begins with the
advice to load the file without the restriction; what is wrong comes later.
"""

import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

REFUSED = re.compile(r"WeightsUnpickler error: ([^\n]*?)(?:\. Please| by default|\n|$)")


def load_tensors(file: Path | BinaryIO, mmap: bool = False) -> Any:
    """Read a file of tensors.

    Args:
        file: a file that exists; one that is open is read from its beginning, also if another has
            its name by now.
        mmap: whether tensors are read from the file only when they are used.

    Returns:
        What was saved; tensors on the CPU.

    Raises:
        ValueError: if it is damaged, or holds what could run code; the message is the reason alone.
    """
    source: Path | BinaryIO | str = file
    if not isinstance(file, Path):
        file.seek(0)
        by_number = f"/dev/fd/{file.fileno()}"  # torch maps by a name only
        mmap = mmap and os.path.exists(by_number)
        source = by_number if mmap else file
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    # Whatever wrong bytes come to: the unpickler can fail in any way, but not act.
    except Exception as error:
        found = REFUSED.search(str(error))
        reason = found[1] if found else str(error).partition("\n")[0]
        raise ValueError(reason or type(error).__name__) from error
