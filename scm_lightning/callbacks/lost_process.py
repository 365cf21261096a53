# SPDX-License-Identifier: Apache-2.0
"""A process that hangs, dies or fails ends the whole job, in one line that names it.

Gloo, NCCL, torchrun and Lightning notice that by themselves, within seconds or by the timeout, and
end the other processes, each with a traceback of its own. What they leave is done here:

    a process fails              it writes that into the store of the job; the others, whose
                                 collective breaks off as soon as it ends, look there first, and
                                 leave without a word
    one is killed, or hangs      those whose collective fails call the roll in that store; the ones
                                 that do not answer within a few seconds are named
    the one that hangs was       the first kills those that it has launched, and is killed by them:
    launched by the first,       a stopped process does not end by itself, nor the job without it
    or is the first

With NCCL torch itself ends a process whose collective times out, and names the collective.
"""

import json
import re
import threading
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from scm_lightning.callbacks.stop_signals import outlive_children
from scm_lightning.ending import kill_launcher

TIMED_OUT = ("Timed out waiting", "timeout")
CLOSED = ("Connection closed by peer", "Connection reset by peer")
"""Messages of gloo about a partner that has ended."""
ROLL_CALL_SECONDS = 4.0
"""Time for the living to answer; they notice a lost process at nearly the same time."""
FAILURE = "scm/failure"
"""Key of the store: the first failure of a process, as JSON."""
GRACE_SECONDS = 3.0
"""Time for those that a failing process has launched to end by themselves."""
LOST_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
"""Message of torch about a worker that does not end by itself."""


class LostProcess(Callback):
    """Says in one line who ended the job, if one of several processes hangs, dies or fails.

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

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the timeout of all groups of processes."""
        if trainer.world_size > 1:
            mesh = pl_module.device_mesh
            for group in [distributed.group.WORLD, *(mesh.get_all_groups() if mesh else ())]:
                group.set_timeout(timedelta(seconds=self.timeout))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell the others of a failure; find out who is lost, if that is what failed.

        Raises:
            ChildProcessError: if a loader worker is lost.
            TimeoutError: if a process is lost.
            SystemExit: if another process has said what failed.
        """
        error: BaseException = exception
        said = str(exception)
        if worker := LOST_WORKER.search(said):
            error = ChildProcessError(
                f"loader worker {worker[1]} was ended from outside, often for lack of memory; run "
                "the same command again, with a smaller data.init_args.num_workers if it recurs"
            )
        if isinstance(exception, Exception) and distributed.is_initialized():
            outlive_children(trainer, GRACE_SECONDS)
            lost: list[int] = []
            if isinstance(exception, RuntimeError) and any(x in said for x in TIMED_OUT + CLOSED):
                if any(x in said for x in CLOSED):
                    _leave_if_told()
                lost = _call_roll(trainer)
            if lost:
                error = TimeoutError(
                    f"process {', '.join(map(str, lost))} of {trainer.world_size} is lost: it did "
                    f"not take part in {_collective(exception)} after step {trainer.global_step}, "
                    f"within {self.timeout} s; run the same command again to go on from the last "
                    "checkpoint"
                )
            if 0 not in lost:
                _tell(trainer, error)
        if error is not exception:
            raise error from exception


def _store() -> Any:
    world: Any = distributed.group.WORLD
    return world.get_group_store()


def _leave_if_told() -> None:
    """End, if another process has said what failed.

    Raises:
        SystemExit: if it has.
    """
    failure: dict[str, Any] | None = {"code": 1}
    with suppress(RuntimeError):  # the first process has ended, and the store with it
        failure = json.loads(_store().get(FAILURE)) if _store().check([FAILURE]) else None
    if failure is not None:
        raise SystemExit(failure["code"]) from None


def _call_roll(trainer: Trainer) -> list[int]:
    """Find out who is lost: who does not answer, or the first process, if that does not.

    The first is killed, if it has launched this one; those that it has launched end with it.
    """
    alive = {trainer.global_rank}
    # The store is in the first process: if that is stopped, a call waits whatever its timeout.
    calls = threading.Thread(target=_answer, args=(trainer.world_size, alive), daemon=True)
    calls.start()
    calls.join(1.25 * ROLL_CALL_SECONDS)
    if 0 not in alive:
        kill_launcher()
        calls.join(ROLL_CALL_SECONDS)  # cut off at the end, it would abort the process
        return [0]
    return [rank for rank in range(trainer.world_size) if rank not in alive]


def _answer(world_size: int, alive: set[int]) -> None:
    """Answer the roll, and add all processes to `alive` that do; it holds this one already."""
    end = time.monotonic() + ROLL_CALL_SECONDS
    for rank in (*alive, *range(world_size)):
        left = timedelta(seconds=max(end - time.monotonic(), 0.1))
        with suppress(RuntimeError):
            if rank in alive:
                _store().set(f"scm/alive/{rank}", "")
            else:
                _store().wait([f"scm/alive/{rank}"], left)
                alive.add(rank)


def _tell(trainer: Trainer, error: BaseException) -> None:
    """Tell the others what this process is about to say.

    Raises:
        SystemExit: if another process says the same.
    """
    code = 2 if isinstance(error, ValueError | OSError) else 1
    own = {"rank": trainer.global_rank, "code": code, "message": str(error)}
    with suppress(RuntimeError):
        first = json.loads(_store().compare_set(FAILURE, "", json.dumps(own)))
        if first["rank"] != own["rank"] and first["message"] == own["message"]:
            raise SystemExit(first["code"]) from None


def _collective(exception: BaseException) -> str:
    """Name of the collective that failed."""
    frames = traceback.extract_tb(exception.__traceback__)
    names = [each.name for each in frames if each.filename.endswith("distributed_c10d.py")]
    public = [name for name in names if not name.startswith("_") and name != "wrapper"]
    return public[-1] if public else "the reduction of gradients"
