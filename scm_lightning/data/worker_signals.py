# SPDX-License-Identifier: Apache-2.0
"""Loader workers leave signals to the process that they load for, which looks whether they run.

Ctrl-C and a scheduler's signals go to all processes of a job. A worker that died of one would take
the training process with it, before that has saved its state. So a worker ignores them, but for a
SIGTERM of its own parent, by which torch ends workers that hang.

A stopped worker, by SIGSTOP or a debugger, sends nothing and does not end: the run would wait for
ever. One that is slow is waited for as long as it takes.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PATIENCE_SECONDS = 60.0
"""So long a worker may be stopped, by somebody who lets it go on."""
LOOK_SECONDS = 5.0
"""Between two looks at the workers."""
NEWS_SECONDS = 1.0
"""So long the news of a worker's end may come behind the end of the connection to it."""


def leave_signals_to_parent(worker_id: int) -> None:
    """Ignore signals but those of the parent; torch calls this as `worker_init_fn`.

    Args:
        worker_id: number of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return  # not on Linux: workers are ended with their group
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads started later inherit it
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def own_message(error: Exception) -> str:
    """What an error says; one of a worker comes with its traceback, which ends in the message."""
    return str(error).strip().splitlines()[-1].removeprefix("ValueError: ")


class StoppedWorkers:
    """Ends a worker that is stopped while a batch is waited for; from a thread.

    For the process that waits may be inside a read from that very worker.

    Args:
        workers: numbers of the workers' processes.

    Attributes:
        is_waiting: whether a batch is waited for.
        ended: number of the worker that was ended; None if none was.
    """

    def __init__(self, workers: Sequence[int]) -> None:
        self.is_waiting = False
        self.ended: int | None = None
        self._workers = workers
        if workers:
            threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        """End all workers now, which torch, in an error's wake, waits five seconds for, each."""
        for pid in self._workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def explain(self) -> None:
        """Say which worker a failure comes from, if it comes from one.

        Raises:
            ChildProcessError: if one was stopped, and ended here.
            RuntimeError: torch's, if one was ended by somebody else.
        """
        try:
            time.sleep(NEWS_SECONDS)
        except RuntimeError:
            if self.ended is None:
                raise
        if self.ended is not None:
            raise ChildProcessError(
                f"loader worker {self.ended} has been stopped for {PATIENCE_SECONDS:.0f} s, by "
                "SIGSTOP or a debugger, and was ended; run the same command again"
            )

    def _watch(self) -> None:
        since: dict[int, float] = {}
        while states := {pid: state for pid in self._workers if (state := _state(pid))}:
            now = time.monotonic()
            stopped = [pid for pid, state in states.items() if self.is_waiting and state in "Tt"]
            since = {pid: since.get(pid, now) for pid in stopped}
            for pid, start in since.items():
                if now - start >= PATIENCE_SECONDS:
                    self.ended = pid
                    os.kill(pid, signal.SIGKILL)
                    return
            time.sleep(LOOK_SECONDS)


def _state(pid: int) -> str:
    """State of a process, one letter; empty if it has ended, or there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
