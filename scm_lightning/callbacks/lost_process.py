# SPDX-License-Identifier: Apache-2.0
"""A process that hangs or dies ends the whole job, in one line that names it.

A process that waits in a collective for longer than the timeout, or whose partner's connection
closes, calls the roll: all processes that can still write to the store of the job within a few
seconds are alive, and the others are named, with the collective that waited for them. Those on the
same machine are killed, since a stopped process does not end by itself; and if it is the first one,
the job would seem to go on. With NCCL torch itself ends a process whose collective times out.
"""

import os
import signal
import socket
import threading
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed
from torch.distributed import distributed_c10d

from scm_lightning.callbacks.stop_signals import outlive_children

SYMPTOMS = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer", "timeout")
ROLL_CALL_SECONDS = 4.0
"""How long the living have to answer; they notice a lost process at nearly the same time."""


class LostProcess(Callback):
    """Ends the job if one of several processes hangs or dies; see the module.

    Args:
        timeout: seconds that a process waits for the others in training. More than the first one
            needs to save a checkpoint, while the others wait.

    Raises:
        ValueError: if `timeout` is below 1.
    """

    def __init__(self, timeout: int = 1800) -> None:
        if timeout < 1:
            raise ValueError(f"timeout must be at least 1 second, got {timeout}")
        self.timeout = timeout
        self._places: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the others where this process is."""
        if trainer.world_size > 1:
            own = f"{socket.gethostname()} {os.getpid()}"
            _store().set(f"scm/place/{trainer.global_rank}", own)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn where the others are; set the timeout of all groups of processes."""
        if trainer.world_size == 1:
            return
        ranks = range(trainer.world_size)
        self._places = [_store().get(f"scm/place/{rank}").decode() for rank in ranks]
        mesh = pl_module.device_mesh
        for group in [distributed.group.WORLD, *([] if mesh is None else mesh.get_all_groups())]:
            distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout), group)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Find out who is lost.

        Raises:
            TimeoutError: if somebody is.
        """
        is_symptom = isinstance(exception, RuntimeError) and any(
            symptom in str(exception) for symptom in SYMPTOMS
        )
        if not self._places or not is_symptom:
            return
        outlive_children(trainer)
        alive = {trainer.global_rank}
        # The store is in the first process: if that is stopped, a call waits whatever its timeout.
        calls = threading.Thread(target=_call_roll, args=(len(self._places), alive), daemon=True)
        calls.start()
        calls.join(1.5 * ROLL_CALL_SECONDS)
        missing = [rank for rank in range(trainer.world_size) if rank not in alive]
        lost = [0] if 0 in missing else missing
        if not lost:
            return
        for rank in lost:
            self._kill_here(rank)
        calls.join(ROLL_CALL_SECONDS)  # the store is closed now, if it waited for that
        names = ", ".join(map(str, lost))
        raise TimeoutError(
            f"process {names} of {trainer.world_size} is lost: it did not take part in "
            f"{_collective(exception)} after step {trainer.global_step}, within {self.timeout} s; "
            "run the same command again to go on from the last checkpoint"
        ) from exception

    def _kill_here(self, rank: int) -> None:
        """Kill a process, if it is one of this machine."""
        host, number = self._places[rank].rsplit(" ", 1)
        if host == socket.gethostname():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)


def _store() -> Any:
    return distributed_c10d._get_default_store()


def _call_roll(world_size: int, alive: set[int]) -> None:
    """Answer, and add all processes to `alive` that do; it holds this one already."""
    end = time.monotonic() + ROLL_CALL_SECONDS
    with suppress(RuntimeError):
        for own in alive:
            _store().set(f"scm/alive/{own}", "")
    for rank in range(world_size):
        left = timedelta(seconds=max(end - time.monotonic(), 0.1))
        with suppress(RuntimeError):
            _store().wait([f"scm/alive/{rank}"], left)
            alive.add(rank)


def _collective(exception: BaseException) -> str:
    """Name of the collective that failed."""
    frames = traceback.extract_tb(exception.__traceback__)
    names = [each.name for each in frames if each.filename.endswith("distributed_c10d.py")]
    public = [name for name in names if not name.startswith("_") and name != "wrapper"]
    return public[-1] if public else "the reduction of gradients"
