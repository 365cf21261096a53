# SPDX-License-Identifier: Apache-2.0
"""A run that is asked to stop saves its state and says so in its exit code.

    SIGTERM                        the end of a job                  exit code 143
    SIGINT                         Ctrl-C                            exit code 130
    SIGUSR1 (`preemption_signal`)  the scheduler will end the job    exit code 75, "run it again"

From the start of training on a handler only takes note; before, signals act as the program has set,
and `scm` ends at once. At the end of every optimizer step, and of every batch of a validation, the
processes compare their notes, the largest signal number wins, and all stop at the same step:
whichever of them was asked. After the last step there is nothing to stop: the run ends as it would,
with code 0.

A signal that is repeated changes nothing, so that schedulers, launchers and process groups can send
it as often as they like; only a third Ctrl-C quits at once, which leaves the last checkpoint whole.

Lightning's own handlers are not installed: theirs broadcast from within the handler, which hangs
when one process alone is asked, save while a collective may be under way, and exit with 0.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from scm_lightning.callbacks.checkpoints import Checkpoints
from scm_lightning.ending import end_at_once
from scm_lightning.saying import warn
from scm_lightning.storage.history import LAST

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: the same command, run again, goes on."""
FORCING_INTERRUPTS = 3
"""Ctrl-C this often quits at once."""
CHILD_SECONDS = 20.0
"""Time that the launching process waits for the others' end before it kills them."""


class Stopped(SystemExit):
    """Raised in all processes once the state is saved; its code is the process's exit code."""


class StopSignals(Callback):
    """Stops a training run on SIGTERM, SIGINT and a scheduler's signal; see the module.

    Args:
        preemption_signal: name of the signal that a scheduler sends some time before it ends the
            job, SLURM's `--signal=USR1@120`; null for none.

    Raises:
        ValueError: if there is no signal of that name.

    Attributes:
        agreed: what all processes have agreed on in the step under way, if another callback that
            compares something has compared their notes too.
    """

    def __init__(self, preemption_signal: str | None = "SIGUSR1") -> None:
        names = {each.name for each in signal.valid_signals() if isinstance(each, signal.Signals)}
        if preemption_signal is not None and preemption_signal not in names:
            raise ValueError(
                f"preemption_signal must be the name of a signal, such as SIGUSR1, got "
                f"{preemption_signal}; set it to null for none"
            )
        self.exit_codes = {int(signal.SIGTERM): 143, int(signal.SIGINT): 130}
        if preemption_signal is not None:
            self.exit_codes[int(signal.Signals[preemption_signal])] = EXIT_PREEMPTED
        self.received: list[int] = []
        self.agreed: int | None = None
        self._previous: dict[int, Any] = {}
        self._group: Any = None
        self._first_step = 0
        self._owner = 0

    @property
    def asked(self) -> int:
        """Number of the signal that this process was sent, the largest of several; or 0."""
        return max(self.received, default=0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep Lightning's handlers out.

        In validation, test and prediction nothing is worth saving, and signals act as usual. So
        they do before training starts; the scheduler's then acts as SIGUSR1 does.
        """
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = lambda: None
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None  # one collective and one wait per batch
        if stage != "fit" or threading.current_thread() is not threading.main_thread():
            return
        for signum in self.exit_codes:
            if self.exit_codes[signum] == EXIT_PREEMPTED:
                self._handle(signum, signal.getsignal(signal.SIGUSR1))
        if trainer.world_size > 1 and distributed.get_backend() != "gloo":
            # On the host, so that no step waits for the device.
            self._group = distributed.new_group(backend="gloo")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note of signals from here on, in all processes, and of where the run starts."""
        self._first_step = trainer.global_step
        if threading.current_thread() is not threading.main_thread():
            return
        self.received.clear()
        self._owner = os.getpid()
        trainer.strategy.barrier("signals are noted")  # or one ends at once, and another waits
        for signum in self.exit_codes:
            self._handle(signum, self._take_note)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop after an optimizer step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop within a validation, which the resumed run does not repeat."""
        if trainer.state.fn == "fit":
            self._stop_if_asked(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Hand the signals back, unless the process is about to end by one."""
        if not isinstance(exception, Stopped):
            self._hand_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the signals back."""
        self._hand_back()

    def _handle(self, signum: int, handler: Any) -> None:
        previous = signal.signal(signum, handler)
        self._previous.setdefault(signum, previous or signal.SIG_DFL)

    def _take_note(self, signum: int, frame: Any) -> None:
        """The handler. Nothing here may wait, or write through a buffer."""
        if os.getpid() != self._owner:
            return  # a loader's worker, which inherits the handler: its owner ends it
        self.received.append(signum)
        if signum == signal.SIGINT and self.received.count(signum) == FORCING_INTERRUPTS:
            end_at_once(self.exit_codes[signum])
        if self.received.count(signum) == 1:
            name = signal.Signals(signum).name
            os.write(2, f"scm: {name} received; saves and stops after this step\n".encode())

    def _stop_if_asked(self, trainer: Trainer) -> None:
        signum, self.agreed = self.agreed, None
        if signum is None:
            notes = torch.tensor(self.asked)
            if trainer.world_size > 1:
                distributed.all_reduce(notes, distributed.ReduceOp.MAX, group=self._group)
            signum = int(notes)
        if signum:
            self._stop(trainer, signum)

    def _stop(self, trainer: Any, signum: int) -> None:
        """Save, and end the run in all processes; go on if that has to wait for an optimizer step.

        Raises:
            Stopped: once the state is saved.
        """
        outlive_children(trainer)
        file: Path | None = None
        checkpoints = [each for each in trainer.callbacks if isinstance(each, Checkpoints)]
        is_trained = trainer.global_step > self._first_step and not trainer.fast_dev_run
        if checkpoints and is_trained:
            if trainer.validating:
                # One that is half done would be taken up in its middle, on a loader that starts.
                trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()
            if not checkpoints[0].save_last(trainer):
                return
            file = checkpoints[0].folder / LAST
        for repeated in self.exit_codes:
            if repeated != signal.SIGINT:
                signal.signal(repeated, signal.SIG_IGN)
        if trainer.is_global_zero:
            name, step = signal.Signals(signum).name, trainer.global_step
            saved = "nothing to save" if file is None else f"saved {file}"
            sys.stdout.flush()
            warn(f"stopped by {name} after step {step}; {saved}")
        raise Stopped(self.exit_codes[signum])

    def _hand_back(self) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
        self._previous = {}


def outlive_children(trainer: Trainer, seconds: float = CHILD_SECONDS) -> None:
    """Let this process end by itself, and after those that it has launched.

    Lightning would kill it as soon as one of them ended with a code other than 0.

    Args:
        trainer: the trainer.
        seconds: how long the others have, before they are killed.
    """
    launched = getattr(trainer.strategy.launcher, "procs", [])
    if launched:
        atexit.register(_wait_for, list(launched), seconds)
        launched.clear()


def _wait_for(processes: list["subprocess.Popen[bytes]"], seconds: float) -> None:
    """Leave no process behind that this one has launched."""
    end = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(timeout=max(end - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
