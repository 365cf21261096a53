# SPDX-License-Identifier: Apache-2.0
"""Reading and writing of checkpoints for Lightning: whole, checked, and without running code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from torch import distributed

from scm_lightning.storage import Checkpoint


class WholeFiles(CheckpointIO):
    """Checkpoints that are there whole or not at all, with a checksum."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a file; see `Checkpoint.write`."""
        assert storage_options is None, "a plain file has none"
        Checkpoint(path).write(checkpoint)

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
        checkpoint = Checkpoint(path)
        if not checkpoint.exists():
            raise ValueError(f"there is no checkpoint {path}; give another path")
        while True:
            content = checkpoint.read()
            if not distributed.is_initialized():
                return content
            steps = [None] * distributed.get_world_size()
            distributed.all_gather_object(steps, content.get("global_step"))
            if len({*steps}) == 1:
                return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove one."""
        Checkpoint(path).remove()
