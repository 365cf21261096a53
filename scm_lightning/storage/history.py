# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run, in their folder.

    0010000.ckpt  0020000.ckpt ...  last.ckpt

are of one history: each step continued from the one before it. `last.ckpt`
is the newest; a numbered file of the same step is the same file under another name. A run that
starts from an earlier step moves later files to `checkpoints.old-1`, `-2`, ... beside the folder,
so that nothing is overwritten and the largest step is the end of this run. Other files, for example
what `scm reconstruct` writes, are left alone.

    0010000.ckpt/  0020000.ckpt/  last-0023456.ckpt/  last.ckpt -> last-0023456.ckpt

is the same of checkpoints that are folders, which cannot replace each other in one step: a link to
the newest does. A state that is not to be numbered is removed when there is a newer one.
"""

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scm_lightning.storage.checkpoint import Checkpoint
from scm_lightning.storage.side_files import move_together
from scm_lightning.whole_files import flush_folder, written_whole

LAST = "last.ckpt"
OWN_NAME = re.compile(r"last\.ckpt|(last-)?\d{7,}\.ckpt")


class Found(NamedTuple):
    """Checkpoint of a folder to continue from.

    Attributes:
        file: file or folder of the largest step that is not damaged; None if there is none.
        step: its optimizer steps; 0 without one.
        damaged: later ones, that cannot be used, with the reason.
    """

    file: Path | None
    step: int
    damaged: list[tuple[Path, str]]


@dataclass(frozen=True)
class History:
    """The checkpoints that a run writes by itself.

    Args:
        folder: their folder; there are none in a missing one.
        in_parts: whether new ones are folders.
    """

    folder: Path
    in_parts: bool = False

    @property
    def last(self) -> Path:
        """The newest one's second name."""
        return self.folder / LAST

    def numbered(self, step: int) -> Path:
        """File or folder of a step that is to be numbered."""
        return self.folder / f"{step:07d}.ckpt"

    def unnumbered(self, step: int) -> Path:
        """Folder of a step that is not to be numbered."""
        return self.folder / f"last-{step:07d}.ckpt"

    def steps(self) -> list[tuple[float, Path]]:
        """Optimizer steps and files, the largest step first.

        Steps are infinite where they cannot be read; `last.ckpt` comes behind a numbered file of
        the same step.
        """
        found = []
        for file in self.folder.glob("*.ckpt"):
            if OWN_NAME.fullmatch(file.name):
                with suppress(FileNotFoundError):  # a link to what was set aside, or just removed
                    step = Checkpoint(file).step
                    found.append((float("inf") if step is None else step, file))
        return sorted(found, key=lambda each: (-each[0], each[1].name))

    def newest(self) -> Found:
        """Find what to continue from; later ones that are damaged are passed over."""
        damaged = []
        for step, file in self.steps():
            try:
                Checkpoint(file).check()
                if step == float("inf"):
                    raise ValueError(f"{file} does not say its step")
            except ValueError as error:
                damaged.append((file, str(error).partition(";")[0]))
            else:
                return Found(file, int(step), damaged)
        return Found(None, 0, damaged)

    def set_aside_later(self, step: int) -> Path | None:
        """Move those of later steps than the one that training starts from, and damaged ones.

        Args:
            step: optimizer steps at the start.

        Returns:
            Where they are now; None if there were none.
        """
        later = [file for found, file in self.steps() if found > step]
        return move_together(later, self.folder) if later else None

    def sweep(self) -> None:
        """Remove what a killed process has left of a checkpoint that it was writing."""
        for left in self.folder.glob("*.ckpt*.part"):
            Checkpoint(left).remove()

    def place(self, step: int, is_numbered: bool) -> Path:
        """Path to write the state of a step to, before `name` gives it its second name."""
        if not self.in_parts:
            return self.last
        return self.numbered(step) if is_numbered else self.unnumbered(step)

    def name(self, step: int, is_numbered: bool) -> None:
        """Give the newest checkpoint its second name, once it is written.

        In this order, since a process may be killed in between: `last.ckpt` is never ahead of what
        is there. A file is copied where a disk has no second names.
        """
        if self.in_parts:
            self._link(self.place(step, is_numbered).name)
        elif is_numbered:
            with written_whole(self.numbered(step)) as beside:
                try:
                    os.link(self.last, beside)
                except OSError:
                    shutil.copyfile(self.last, beside)

    def name_if_interrupted(self, step: int, is_numbered: bool) -> None:
        """Give the checkpoint that a run starts from its second name, if a kill came before it."""
        is_last = self.last.exists() and Checkpoint(self.last).step == step
        if self.in_parts:
            for with_number in (True, False):
                if self.place(step, with_number).exists() and not is_last:
                    self.name(step, with_number)
        elif is_last and is_numbered and not self.numbered(step).exists():
            self.name(step, is_numbered)

    def _link(self, name: str) -> None:
        """Link `last.ckpt` to a folder; remove other folders without a number."""
        link = self.folder / f"{LAST}.{os.getpid()}.part"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        if self.last.is_dir() and not self.last.is_symlink():
            Checkpoint(self.last).remove()  # a copy that has followed the link
        os.replace(link, self.last)
        flush_folder(self.folder)
        for older in self.folder.glob("last-*.ckpt"):
            if older.name != name:
                Checkpoint(older).remove()
