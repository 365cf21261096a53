# SPDX-License-Identifier: Apache-2.0
"""A checkpoint, whether it is a file or a folder of parts."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from torch.distributed.device_mesh import DeviceMesh

from scm_lightning.given_files import open_regular
from scm_lightning.saying import say
from scm_lightning.storage.archive import (
    DamagedError,
    archive_step,
    read_archive,
    write_archive,
)
from scm_lightning.storage.parts import are_parts, check_parts, parts_step, read_parts, write_parts


class Checkpoint:
    """All that a run continues from, on the disk: one file, or a folder of parts.

    Args:
        path: the file or folder, or a link to it; it need not be there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def exists(self) -> bool:
        """Tell whether there is a file, or a folder that was meant to be a checkpoint."""
        return self.path.is_file() or are_parts(self.path)

    def siblings(self) -> str:
        """Names of the others in its folder, for messages: `a.ckpt, b.ckpt`, or `none`."""
        others = {each.name for each in self.path.parent.glob("*.ckpt")} - {self.path.name}
        return ", ".join(sorted(others)) or "none"

    @property
    def step(self) -> int | None:
        """Optimizer steps that it claims to hold; None if it is damaged where they stand."""
        if self.path.is_dir():
            return parts_step(self.path)
        if self.path.exists() and not self.path.is_file():
            return None
        with self.path.open("rb") as opened:
            return archive_step(opened)

    def check(self) -> None:
        """Compare it with its checksums; a file that has none passes, and that is said.

        Raises:
            ValueError: if it is damaged, or no checkpoint.
        """
        if self.path.is_dir():
            with self._named():
                check_parts(self.path.resolve())
        else:
            self.read(mmap=True)

    def read(self, mesh: DeviceMesh | None = None, mmap: bool = False) -> dict[str, Any]:
        """Read it, checked and without running code from it.

        Args:
            mesh: with one, sharded tensors of a folder come out sharded over it, and all of its
                processes must call; without, all tensors are whole and on the CPU.
            mmap: whether tensors of a file are read only when they are used.

        Returns:
            What was saved.

        Raises:
            ValueError: if it is damaged, or cannot be read.
        """
        with self._named():
            if self.path.is_dir():
                return read_parts(self.path, mesh)
            with open_regular(self.path) as opened:
                content, is_checked = read_archive(opened, mmap)
        if not is_checked:
            _say_unchecked(self.path)
        return content

    def write(self, content: Mapping[str, Any], in_parts: bool = False) -> None:
        """Write it; an older one is replaced once all of this one is on the disk.

        Args:
            content: what is to be saved, with the entry `global_step`.
            in_parts: whether sharded tensors are written by the processes that hold them, into a
                folder; all processes must call.

        Raises:
            OSError: if it cannot be written; what was there before is left as it was.
            ValueError: if it could not be loaded without running code.
        """
        (write_parts if in_parts else write_archive)(content, self.path)

    def remove(self) -> None:
        """Remove it, so that a killed process leaves no half of a folder under its name."""
        if self.path.is_dir() and not self.path.is_symlink():
            going = self.path
            if going.suffix != ".part":
                going = self.path.with_name(f"{self.path.name}.removed.part")
                os.replace(self.path, going)
            shutil.rmtree(going)
        else:
            self.path.unlink(missing_ok=True)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name a damaged checkpoint, and the others there are."""
        try:
            yield
        except DamagedError as error:
            others = self.siblings()
            advice = "there is no other" if others == "none" else f"give another one: {others}"
            raise ValueError(f"{self.path} {error}; {advice} in {self.path.parent}") from error


@cache
def _say_unchecked(file: Path) -> None:
    """Say once per file that it is unchecked."""
    say(f"{file} has no checksum: read unchecked")
