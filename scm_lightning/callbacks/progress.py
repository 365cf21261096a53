# SPDX-License-Identifier: Apache-2.0
"""Progress of a run: a bar on a terminal, a plain line now and then anywhere else."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
    CustomTimeColumn,
)
from rich.progress import ProgressColumn, TextColumn

from scm_lightning.callbacks.watch import Watch, peak_memory
from scm_lightning.saying import LITERAL, Pace, console, say

MOST_LINES = 50
"""Most lines of a run, as far as its steps ask for them."""
SHOWN_EVERY = 0.5
"""Time between two readings of the loss on the bar from its device. Seconds."""


class Progress(RichProgressBar):
    """Lightning's rich bar, over all optimizer steps of a run; off a terminal, plain lines.

    Lightning's own starts anew at every pass over the data, which says nothing of the time left.
    A line has the step, the mean loss since the line before, the learning rate, images per second,
    peak memory and the time left; loss and memory are those of the first process. Besides by steps,
    lines come after 10 seconds, 20, 40, ..., then every ten minutes. The scores of a validation
    have a line of their own, on a terminal too.

    Callbacks that print at the end of a stage stand behind this one, which closes the bar.

    Args:
        line_every_n_steps: optimizer steps between two lines off a terminal; None for the first of
            1, 2, 5, 10, 20, ... by which a run has at most 50.
        refresh_rate: how often the bar is drawn. Per second.
        options: further ones of Lightning's RichProgressBar.

    Raises:
        ValueError: if `line_every_n_steps` is below 1.
    """

    def __init__(
        self, line_every_n_steps: int | None = None, refresh_rate: int = 10, **options: Any
    ) -> None:
        if line_every_n_steps is not None and line_every_n_steps < 1:
            raise ValueError(f"line_every_n_steps must be at least 1, got {line_every_n_steps}")
        given = options.pop("console_kwargs", None) or {}
        super().__init__(refresh_rate, console_kwargs={**LITERAL, **given}, **options)
        self.line_every_n_steps = line_every_n_steps
        self._watch = Watch()
        self._pace: Pace | None = None
        self._stage_pace = Pace(0)
        self._step = 0
        self._loss = ""

    @property
    def total_train_batches(self) -> int | float:
        """Steps until `max_steps`, or Lightning's own count of batches without such a limit."""
        if self.trainer.max_steps < 0:
            return super().total_train_batches
        return self.trainer.max_steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the bar out where it could not move."""
        super().setup(trainer, pl_module, stage)
        if not console().is_interactive:
            self.disable()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        super().on_train_start(trainer, pl_module)
        self._watch, self._pace, self._loss = Watch(), None, ""
        self._step = trainer.global_step

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
        """Move the bar, or print a line."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            loss = loss * trainer.accumulate_grad_batches  # which Lightning divides by
        self._watch.see(loss, len(getattr(batch, "x0", ())) * trainer.world_size)
        if trainer.max_steps >= 0:
            batch_idx = trainer.global_step - 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._prints_lines(trainer) and trainer.global_step > self._step:
            self._step = trainer.global_step
            self._say_step(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar before anything else is printed."""
        super().on_train_end(trainer, pl_module)
        self.teardown(trainer, pl_module, "fit")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the watch: what follows is no training."""
        super().on_validation_start(trainer, pl_module)
        self._watch.pause()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar, or print a line."""
        super().on_validation_batch_end(
            trainer, pl_module, outputs, batch, batch_idx, dataloader_idx
        )
        is_check = trainer.sanity_checking
        totals = trainer.num_sanity_val_batches if is_check else trainer.num_val_batches
        self._count(trainer, batch_idx, totals[dataloader_idx])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say the scores of a run that is trained; else close the bar."""
        super().on_validation_end(trainer, pl_module)
        self._watch.go_on()
        if trainer.state.fn != "fit":
            self.teardown(trainer, pl_module, "validate")
        elif not trainer.sanity_checking:
            found = sorted(trainer.callback_metrics.items())
            scores = [f"{name} {float(x):.4g}" for name, x in found if name.startswith("val")]
            if scores:
                say(" | ".join([_position(trainer), *scores]))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar, or print a line."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._count(trainer, batch_idx, trainer.num_test_batches[dataloader_idx])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar before the scores are printed."""
        self.teardown(trainer, pl_module, "test")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar, or print a line."""
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._count(trainer, batch_idx, trainer.num_predict_batches[dataloader_idx])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar before anything else is printed."""
        super().on_predict_end(trainer, pl_module)
        self.teardown(trainer, pl_module, "predict")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """The loss, read seldom since that waits for its device, and what a module asks for."""
        is_last = trainer.global_step == trainer.max_steps
        if not self._loss or is_last or self._watch.seconds > SHOWN_EVERY:
            loss, _ = self._watch.read()
            self._loss = self._loss if loss is None else _number(loss)
        metrics = {"loss": self._loss, **super().get_metrics(trainer, pl_module)}
        metrics.pop("v_num", None)
        return metrics

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Columns that leave room for the loss in 80 letters."""
        return [
            TextColumn("{task.description}", markup=False),
            CustomBarColumn(bar_width=10),
            BatchesProcessedColumn(self.theme.batch_progress),
            CustomTimeColumn(self.theme.time),
        ]

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_steps >= 0:
            return "Training"
        return super()._get_train_description(current_epoch)

    def _prints_lines(self, trainer: Trainer) -> bool:
        return self.is_disabled and self.refresh_rate > 0 and trainer.is_global_zero

    def _say_step(self, trainer: Trainer) -> None:
        """Print how far a training is, if a line is due, as it is after the first step."""
        step = trainer.global_step
        if self._pace is None:
            total = float(trainer.estimated_stepping_batches)
            # From here, since the first step warms up, or compiles.
            self._pace = Pace(total, self.line_every_n_steps or _round(total / MOST_LINES), step)
        elif not (self._pace.is_due(step) or step == self._pace.total):
            return
        loss, speed = self._watch.read()
        rates = [group["lr"] for each in trainer.optimizers for group in each.param_groups]
        parts = (
            _position(trainer),
            f"loss {_number(loss)}",
            f"lr {rates[0]:.3g}",
            f"{speed:,.0f} images/s" if speed else "",
            peak_memory(trainer.strategy.root_device),
            self._pace.left(step),
        )
        say(" | ".join(filter(None, parts)))

    def _count(self, trainer: Trainer, batch_idx: int, total: int | float) -> None:
        """Print how far a stage without steps is, if a line is due."""
        done = batch_idx + 1
        if done == 1:
            self._stage_pace = Pace(total, done=done)
        elif self._prints_lines(trainer) and self._stage_pace.is_due(done):
            stage = trainer.state.stage
            parts = (f"{stage and stage.value} batch {done}/{total}", self._stage_pace.left(done))
            say(" | ".join(filter(None, parts)))


def _position(trainer: Trainer) -> str:
    total = f"/{trainer.max_steps}" if trainer.max_steps >= 0 else ""
    return f"step {trainer.global_step}{total}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _round(least: float) -> int | None:
    """The first of 1, 2, 5, 10, 20, ... that is not below a number; None if that is infinite."""
    if least == float("inf"):
        return None
    steps = [int(each * 10**power) for power in range(20) for each in (1, 2, 5)]
    return next(each for each in steps if each >= least)
