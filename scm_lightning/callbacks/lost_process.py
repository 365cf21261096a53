# SPDX-License-Identifier: Apache-2.0
"""A process that hangs, dies or fails ends the whole job, in one line that names it.

A process that fails alone, because only the first one writes files and computes scores, or because
of a sample that only one has, writes that into the store of the job before it leaves. The others
look there every second, and end without a word: in a collective that fails once the connection
closes, and a few seconds later wherever else they are.

A process that waits in a collective for longer than the timeout, or whose partner's connection
closes, calls the roll: all processes that can still write to the store of the job within a few
seconds are alive, and the others are named, with the collective that waited for them. Those on the
same machine are killed, since a stopped process does not end by itself; and if it is the first one,
the job would seem to go on. With NCCL torch itself ends a process whose collective times out.
"""

import atexit
import json
import os
import re
import signal
import socket
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed
from torch.distributed import distributed_c10d

from scm_lightning.callbacks.stop_signals import outlive_children
from scm_lightning.ending import end_at_once

SYMPTOMS = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer", "timeout")
ROLL_CALL_SECONDS = 4.0
"""How long the living have to answer; they notice a lost process at nearly the same time."""
FAILURE = "scm/failure"
"""Key of the store: the first failure of a process, as JSON."""
LISTEN_SECONDS = 1.0
"""Between two looks at that key."""
GRACE_SECONDS = 3.0
"""Time to end by oneself after the failure of another, or to be told of by the others."""
LOST_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
"""What torch says of a worker that does not end by itself."""


class LostProcess(Callback):
    """Ends the job if one of several processes hangs, dies or fails; see the module.

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
        self._failure: dict[str, Any] | None = None
        self._ended = threading.Event()
        self._listener: threading.Thread | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the others where this process is; listen for their failures from here on."""
        if trainer.world_size == 1:
            return
        self._stop_listening()
        rank, own = trainer.global_rank, _place(os.getpid())
        self._ended, self._failure = threading.Event(), None
        listener = (_store().clone(), rank, self._ended)
        self._listener = threading.Thread(target=self._listen, args=listener, daemon=True)
        self._listener.start()
        # A thread that is inside the store when Python ends aborts the process: exit code 134.
        atexit.register(self._stop_listening)
        _store().set(f"scm/place/{rank}", own)
        trainer.strategy.barrier("places are known")
        ranks = range(trainer.world_size)
        self._places = [_store().get(f"scm/place/{each}").decode() for each in ranks]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the timeout of all groups of processes."""
        if trainer.world_size == 1:
            return
        mesh = pl_module.device_mesh
        for group in [distributed.group.WORLD, *([] if mesh is None else mesh.get_all_groups())]:
            distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout), group)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no more."""
        self._stop_listening()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell the others of a failure; find out who is lost, if that is what failed.

        Raises:
            ChildProcessError: if a loader worker is lost.
            TimeoutError: if somebody is lost.
            ConnectionError: if another process has ended before this one could listen.
            SystemExit: if another process has said what failed.
        """
        if not isinstance(exception, Exception):
            return
        if worker := LOST_WORKER.search(str(exception)):
            error: Exception = ChildProcessError(
                f"loader worker {worker[1]} was ended from outside, often for lack of memory; run "
                "the same command again, with a smaller data.init_args.num_workers if it recurs"
            )
            self._tell(trainer, error)
            raise error from exception
        if trainer.world_size == 1:
            return
        is_symptom = isinstance(exception, RuntimeError) and any(
            symptom in str(exception) for symptom in SYMPTOMS
        )
        if is_symptom and not self._places:
            raise ConnectionError("another process ended before the run was set up") from None
        if not is_symptom:
            self._tell(trainer, exception)
            return
        if self._failure is not None:
            outlive_children(trainer)
            _end_quietly(self._failure)
        lost = self._call_roll(trainer)
        if lost:
            names = ", ".join(map(str, lost))
            error = TimeoutError(
                f"process {names} of {trainer.world_size} is lost: it did not take part in "
                f"{_collective(exception)} after step {trainer.global_step}, within "
                f"{self.timeout} s; run the same command again to go on from the last checkpoint"
            )
            outlive_children(trainer)
            if 0 not in lost:
                self._tell(trainer, error, lost)
            raise error from exception

    def _stop_listening(self) -> None:
        """End the listener, also when the process ends with its run under way."""
        self._ended.set()
        if self._listener is not None:
            self._listener.join(GRACE_SECONDS)  # the store of a stopped process does not answer
            self._listener = None
        atexit.unregister(self._stop_listening)

    def _listen(self, store: Any, rank: int, ended: threading.Event) -> None:
        """Wait for another process's failure, and end this one. Runs in a thread."""
        with suppress(RuntimeError):  # the first process has ended, and the store with it
            while not store.check([FAILURE]):
                if ended.wait(LISTEN_SECONDS):
                    return
            failure = json.loads(store.get(FAILURE))
            self._failure = failure
            store.set(f"scm/heard/{rank}", "")
            if failure["rank"] == rank or ended.wait(GRACE_SECONDS):
                return
            end_at_once(failure["code"])

    def _tell(self, trainer: Trainer, error: Exception, lost: Sequence[int] = ()) -> None:
        """Tell the others, and wait until they know: the store may end with this process.

        Raises:
            SystemExit: if another process says the same.
        """
        if not self._places:
            return
        outlive_children(trainer)
        code = 2 if isinstance(error, ValueError | OSError) else 1
        rank, message = trainer.global_rank, str(error)
        with suppress(RuntimeError):
            own = json.dumps({"rank": rank, "code": code, "message": message})
            first = json.loads(_store().compare_set(FAILURE, "", own))
            _store().set(f"scm/heard/{rank}", "")
            if first["rank"] != rank and first["message"] == message:
                _end_quietly(first)
            others = [each for each in range(trainer.world_size) if each not in lost]
            heard = [f"scm/heard/{each}" for each in others]
            _store().wait(heard, timedelta(seconds=GRACE_SECONDS))

    def _call_roll(self, trainer: Trainer) -> list[int]:
        """Find out who is lost, and kill it."""
        alive = {trainer.global_rank}
        # The store is in the first process: if that is stopped, a call waits whatever its timeout.
        calls = threading.Thread(target=_call_roll, args=(len(self._places), alive), daemon=True)
        calls.start()
        calls.join(1.25 * ROLL_CALL_SECONDS)
        missing = [rank for rank in range(trainer.world_size) if rank not in alive]
        lost = [0] if 0 in missing else missing
        for rank in lost:
            self._kill_here(rank)
        if lost:
            calls.join(ROLL_CALL_SECONDS)  # the store is closed now, if it waited for that
        return lost

    def _kill_here(self, rank: int) -> None:
        """Kill a process, if it is one of this machine."""
        number = int(self._places[rank].split()[0])
        with suppress(OSError):  # it has ended
            if _place(number) == self._places[rank]:
                os.kill(number, signal.SIGKILL)


def _place(number: int) -> str:
    """Tell a process of this machine from all others, also of clones that share its host name.

    Where there is no /proc, its number and the host name have to do.

    Raises:
        ProcessLookupError: if there is no such process.
    """
    own = Path("/proc/self/ns/pid")
    if not own.exists():
        return f"{number} {socket.gethostname()}"
    file = Path(f"/proc/{number}/stat")
    if not file.exists():
        raise ProcessLookupError(number)
    started = file.read_text().rpartition(")")[2].split()[19]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{number} {started} {own.stat().st_ino} {boot}"


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


def _end_quietly(failure: dict[str, Any]) -> NoReturn:
    """End with the code of a process that has said what failed."""
    raise SystemExit(failure["code"]) from None


def _collective(exception: BaseException) -> str:
    """Name of the collective that failed."""
    frames = traceback.extract_tb(exception.__traceback__)
    names = [each.name for each in frames if each.filename.endswith("distributed_c10d.py")]
    public = [name for name in names if not name.startswith("_") and name != "wrapper"]
    return public[-1] if public else "the reduction of gradients"
