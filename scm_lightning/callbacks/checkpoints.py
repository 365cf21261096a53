# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpoints(ModelCheckpoint):
    """Lightning's checkpoints every so many steps, and one at the end of the run.

    Lightning alone leaves the steps after the last multiple of `every_n_train_steps` unsaved.
    `last.ckpt` is always the newest state; the numbered files are kept all.

    Args:
        dirpath: folder of the files; `checkpoints` in the run's folder by default.
        every_n_train_steps: optimizer steps between two files.

    Raises:
        ValueError: if `every_n_train_steps` is below 1.
    """

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int = 10_000) -> None:
        if every_n_train_steps < 1:
            raise ValueError(
                f"every_n_train_steps of checkpoints must be at least 1, got {every_n_train_steps}"
            )
        super().__init__(
            dirpath=dirpath,
            filename="{step:07d}",
            auto_insert_metric_name=False,
            save_last=True,
            save_top_k=-1,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        super().on_train_end(trainer, pl_module)
        assert self.dirpath is not None, "Lightning has set it by now"
        file = Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}.ckpt"
        trainer.save_checkpoint(file, weights_only=False)
