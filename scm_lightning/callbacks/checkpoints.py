# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run, from which it goes on as if it had never stopped.

A checkpoint holds weights, averages and their counters, optimizer, schedules, the position in the
data, and the random numbers of every process. It is written between two optimizer steps, never
while gradients are accumulated, since those are not kept. What is in the folder, and how files are
written, says the room `storage`.
"""

from pathlib import Path
from typing import Any, BinaryIO

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from scm_lightning.callbacks.checkpoint_io import WholeFiles
from scm_lightning.callbacks.folder_lock import empty_folders, lock_folder, remove_unused
from scm_lightning.callbacks.random_state import (
    Numbers,
    as_state,
    gathered,
    random_numbers,
    seed_after,
    set_random_state,
)
from scm_lightning.callbacks.restored_states import keep_given_options
from scm_lightning.callbacks.run_log import RunLog
from scm_lightning.saying import say
from scm_lightning.storage import History

RANDOM_KEY = "random_states"
"""Entry of a checkpoint with the random numbers of all processes."""


class Checkpoints(Checkpoint):
    """Saves every so many steps, and at the end of the run.

    The numbered files are all kept; `last.ckpt` is always the newest state. Random numbers go on
    from step to step, whatever else draws some, so that a run that was interrupted equals the one
    that was not: on the same number of processes, of the same machine and torch.

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
        self.dirpath = dirpath
        self.every_n_train_steps = every_n_train_steps
        self._saved_step = 0
        self._is_trial = False  # fast_dev_run leaves no files
        self._in_batch = False
        self._gradients_wait = False
        self._loaded: list[Any] | None = None
        self._own_numbers: Numbers | None = None  # after the last training step
        self._disturbed = False
        self._lock: BinaryIO | None = None
        self._empty: list[Path] = []

    @property
    def folder(self) -> Path:
        """Folder of the files."""
        assert self.dirpath is not None, "setup has filled it in"
        return Path(self.dirpath)

    def history(self, trainer: Trainer) -> History:
        """The files; folders with a strategy that saves parts: it says so itself."""
        return History(self.folder, bool(getattr(trainer.strategy, "sharded_checkpoints", False)))

    def _is_numbered(self, step: int) -> bool:
        return step > 0 and step % self.every_n_train_steps == 0

    def save_last(self, trainer: Trainer) -> bool:
        """Save `last.ckpt` now. All processes must call.

        Args:
            trainer: the trainer, in a training.

        Returns:
            Whether it is saved; False while gradients are accumulated: call again after the next
            batch.

        Raises:
            OSError: if it cannot be written; in all processes.
        """
        self._note_step(trainer)
        if self._gradients_wait:
            return False
        if self._saved_step != trainer.global_step:
            self._save(trainer)
        return True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read and write files our way; take the folder, unless another run has it.

        Raises:
            ValueError: if another run trains in it, or it cannot be made; in all processes.
        """
        self.dirpath = self.dirpath or str(Path(trainer.default_root_dir) / "checkpoints")
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFiles()
        self._is_trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if stage == "fit" and not self._is_trial:
            self._take_folder(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the random numbers of all processes, as the last training step has left them."""
        self._note_step(trainer)
        own = self._own_numbers or random_numbers(trainer.strategy.root_device)
        checkpoint[RANDOM_KEY] = gathered(as_state(own), trainer.world_size)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the random numbers until training starts; starting it draws some."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._loaded = checkpoint.get(RANDOM_KEY, [])
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            keep_given_options(callbacks, checkpoint.get("callbacks", {}))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random numbers; set aside what is of another, longer run."""
        self._saved_step = trainer.global_step
        self._in_batch = self._gradients_wait = False
        self._own_numbers = None
        if self._loaded is not None:
            self._go_on_from(self._loaded, trainer)
            self._loaded = None
        self._disturbed = True
        for logger in trainer.loggers:
            if isinstance(logger, RunLog):
                logger.start_from(trainer.global_step)
        if trainer.is_global_zero and not self._is_trial:
            self.folder.mkdir(parents=True, exist_ok=True)  # not later: who removes it ends the run
            history, step = self.history(trainer), trainer.global_step
            aside = history.set_aside_later(step)
            if aside is not None:
                say(
                    f"training starts at step {step}: later checkpoints in {self.folder} are now "
                    f"in {aside}"
                )
            history.name_if_interrupted(step, self._is_numbered(step))
        trainer.strategy.barrier("later checkpoints are set aside")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go on with the random numbers of the last step."""
        if self._disturbed and self._own_numbers is not None:
            set_random_state(as_state(self._own_numbers), trainer.strategy.root_device)
        self._disturbed = False
        self._in_batch = True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save every so many steps, and after the last one."""
        self._note_step(trainer)
        step = trainer.global_step
        if self._gradients_wait or self._is_trial or step == self._saved_step:
            return
        if self._is_numbered(step) or step == trainer.max_steps:
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that others draw random numbers."""
        self._disturbed = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that a loader may draw random numbers for its next pass."""
        self._disturbed = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state, if training did not end at `max_steps`."""
        if self._is_trial:
            return
        if self._gradients_wait and trainer.is_global_zero:
            say("training ended between two optimizer steps: waiting gradients are not saved")
        self._gradients_wait = False
        self.save_last(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the folder to another run."""
        self._leave_folder()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the folder to another run."""
        self._leave_folder()

    def _take_folder(self, trainer: Trainer) -> None:
        """Lock the folder; remove what a killed process has left there."""
        failure = None
        if trainer.is_global_zero:
            try:
                self._empty = empty_folders(self.folder)
                self._lock = lock_folder(self.folder)
                self.history(trainer).sweep()
            except (OSError, ValueError) as error:
                failure = str(error)
        failure = trainer.strategy.broadcast(failure)
        if failure:
            raise ValueError(failure)

    def _leave_folder(self) -> None:
        if self._lock is not None:
            remove_unused(self.folder, self._empty)
            self._lock.close()
            self._lock = None

    def _note_step(self, trainer: Trainer) -> None:
        """Take note of the training step that has just been made, if that is not done yet.

        Another callback may ask for a checkpoint before this one is told of the end of the batch.
        """
        if self._in_batch:
            self._own_numbers = random_numbers(trainer.strategy.root_device)
            self._gradients_wait = trainer.fit_loop._should_accumulate()
            self._in_batch = False

    def _save(self, trainer: Trainer) -> None:
        """Write a checkpoint; if it fails, fail in all processes, or others would wait for ever."""
        failure, step, history = None, trainer.global_step, self.history(trainer)
        file = history.place(step, self._is_numbered(step))
        for logger in trainer.loggers:
            logger.save()
        try:
            trainer.save_checkpoint(file, weights_only=False)
        except (OSError, ValueError) as error:
            failure = str(error)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the others are
        if failure is None and trainer.is_global_zero:
            try:
                history.name(step, self._is_numbered(step))
            except OSError as error:
                failure = f"{file} is written, but not its second name: {error}"
        failure = trainer.strategy.broadcast(failure) or failure
        if failure:
            raise OSError(failure)
        self._saved_step = step

    def _go_on_from(self, states: list[Any], trainer: Trainer) -> None:
        """Take this process's random numbers, or new ones if there are none for it."""
        device = trainer.strategy.root_device
        fits = len(states) == trainer.world_size
        if fits and (device.type != "cuda" or "cuda" in states[trainer.global_rank]):
            set_random_state(states[trainer.global_rank], device)
        else:
            seed_after(states, trainer.global_step, trainer.global_rank)
            if trainer.is_global_zero:
                say(
                    f"random numbers are new ones from step {trainer.global_step} on: the "
                    f"checkpoint has those of {len(states)} processes, this run has "
                    f"{trainer.world_size} on {device.type}; it goes on, but not number for number "
                    "as if it had never stopped"
                )
        self._own_numbers = random_numbers(device)
