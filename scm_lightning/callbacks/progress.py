# SPDX-License-Identifier: Apache-2.0
"""A progress bar that knows when the run will end."""

from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's rich bar over the optimizer steps of the whole run.

    The training stream has no end of its own; without this the bar had no total and no estimate of
    the time left.
    """

    @property
    def total_train_batches(self) -> int | float:
        """Batches until `max_steps`, or Lightning's own count where there is no such limit."""
        if self.trainer.max_steps < 0:
            return super().total_train_batches
        left = self.trainer.max_steps - self.trainer.global_step
        return left * self.trainer.accumulate_grad_batches
