# SPDX-License-Identifier: Apache-2.0
"""A progress bar that knows when the run will end."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's rich bar, over all optimizer steps of a run that has a number of them.

    Lightning's own starts anew at every pass over the data, which says nothing of the time left.
    """

    @property
    def total_train_batches(self) -> int | float:
        """Batches until `max_steps`, or Lightning's own count where there is no such limit."""
        if self.trainer.max_steps < 0:
            return super().total_train_batches
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar, once."""
        if trainer.max_steps < 0 or self.train_progress_bar_id is None:
            super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar."""
        if trainer.max_steps >= 0:
            batch_idx = trainer.fit_loop.total_batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_steps >= 0:
            return "Training"
        return super()._get_train_description(current_epoch)
