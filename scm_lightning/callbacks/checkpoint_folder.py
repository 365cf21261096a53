# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run: their folder, and how Lightning reads and writes them.

    0010000.ckpt  0020000.ckpt ...  last.ckpt

are of one history: of every step that is there, the later one went on from the earlier. `last.ckpt`
is the newest; a numbered file of the same step is the same file under another name. A run that
starts from an earlier step moves later files to `checkpoints.old-1`, `-2`, ... beside the folder,
so that nothing is overwritten and the largest step is the end of this run. Other files, for example
what `scm reconstruct` writes, are let alone.

    0010000.ckpt/  0020000.ckpt/  last-0023456.ckpt/  last.ckpt -> last-0023456.ckpt

is the same of checkpoints that are folders, which cannot replace each other in one step: a link to
the newest does. A state that is due to no number goes when there is a newer one.
"""

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.plugins import CheckpointIO
from torch import distributed

from scm_lightning.callbacks.side_files import move_together
from scm_lightning.teachers.checkpoint_files import write_checkpoint
from scm_lightning.teachers.checkpoint_parts import (
    check_checkpoint,
    checkpoint_step,
    is_checkpoint,
    load_checkpoint,
)
from scm_lightning.whole_files import flush_folder, written_whole

LAST = "last.ckpt"
OWN_NAME = re.compile(r"last\.ckpt|(last-)?\d{7,}\.ckpt")


class Found(NamedTuple):
    """What a folder has to go on from.

    Attributes:
        file: file or folder of the largest step that is not damaged; None if there is none.
        step: its optimizer steps; 0 without one.
        damaged: later ones, that cannot be used, with the reason.
    """

    file: Path | None
    step: int
    damaged: list[tuple[Path, str]]


def own_checkpoints(folder: Path) -> list[tuple[float, Path]]:
    """Checkpoints that a run wrote there by itself, the largest step first.

    Args:
        folder: folder of the checkpoints; there are none in a missing one.

    Returns:
        Optimizer steps, infinite where they cannot be read, and file; `last.ckpt` behind a numbered
        file of the same step.
    """
    steps = []
    for file in folder.glob("*.ckpt"):
        if OWN_NAME.fullmatch(file.name):
            with suppress(FileNotFoundError):  # a link to what was set aside, or just removed
                step = checkpoint_step(file)
                steps.append((float("inf") if step is None else step, file))
    return sorted(steps, key=lambda each: (-each[0], each[1].name))


def newest_checkpoint(folder: Path) -> Found:
    """Find what to go on from; later files that are damaged are passed over.

    Args:
        folder: folder of the checkpoints.
    """
    damaged = []
    for step, file in own_checkpoints(folder):
        try:
            check_checkpoint(file)
            if step == float("inf"):
                raise ValueError(f"{file} does not say its step")
        except ValueError as error:
            damaged.append((file, str(error).partition(";")[0]))
        else:
            return Found(file, int(step), damaged)
    return Found(None, 0, damaged)


def set_aside_later(folder: Path, step: int) -> Path | None:
    """Move checkpoints of later steps than the one that training starts from, and damaged ones.

    Args:
        folder: folder of the checkpoints.
        step: optimizer steps at the start.

    Returns:
        Where they are now; None if there were none.
    """
    later = [file for found, file in own_checkpoints(folder) if found > step]
    return move_together(later, folder) if later else None


def sweep(folder: Path) -> None:
    """Remove what a killed process has left of a checkpoint that it was writing."""
    for left in folder.glob("*.ckpt*.part"):
        _remove(left)


def number_last(folder: Path, step: int) -> None:
    """Give `last.ckpt` a second name, its step; a copy where a disk has no second names.

    In this order, since a process may be killed in between: `last.ckpt` is never behind.

    Args:
        folder: folder of the checkpoints.
        step: optimizer steps that `last.ckpt` holds.
    """
    last = folder / LAST
    with written_whole(folder / numbered(step)) as beside:
        try:
            os.link(last, beside)
        except OSError:
            shutil.copyfile(last, beside)


def link_last(folder: Path, name: str) -> None:
    """Let `last.ckpt` be the link to a folder; other folders without a number go.

    Args:
        folder: folder of the checkpoints.
        name: name of the newest checkpoint.
    """
    link = folder / f"{LAST}.{os.getpid()}.part"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    if (folder / LAST).is_dir() and not (folder / LAST).is_symlink():
        _remove(folder / LAST)  # a copy that has followed the link
    os.replace(link, folder / LAST)
    flush_folder(folder)
    for older in folder.glob("last-*.ckpt"):
        if older.name != name:
            _remove(older)


def unnumbered(step: int) -> str:
    """Name of the folder of a step that is due to no number."""
    return f"last-{step:07d}.ckpt"


def numbered(step: int) -> str:
    """Name of the file of a step."""
    return f"{step:07d}.ckpt"


class WholeFiles(CheckpointIO):
    """Lightning's checkpoints as files that are there whole or not at all, with a checksum.

    Nothing is ever read that could run code.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write one; see `write_checkpoint`."""
        assert storage_options is None, "a plain file has none"
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read one onto the CPU; the same in all processes, though a run may replace it meanwhile.

        Raises:
            ValueError: if it is missing or damaged.
        """
        if not is_checkpoint(Path(path)):
            raise ValueError(f"there is no checkpoint {path}; give another path")
        while True:
            checkpoint = load_checkpoint(Path(path))
            if not distributed.is_initialized():
                return checkpoint
            steps = [None] * distributed.get_world_size()
            distributed.all_gather_object(steps, checkpoint.get("global_step"))
            if len({*steps}) == 1:
                return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove one."""
        _remove(Path(path))


def _remove(path: Path) -> None:
    """Remove a file, or a folder so that a killed process leaves no half of it under its name."""
    if path.is_dir() and not path.is_symlink():
        going = path if path.suffix == ".part" else path.with_name(f"{path.name}.removed.part")
        os.replace(path, going)
        shutil.rmtree(going)
    else:
        path.unlink(missing_ok=True)
