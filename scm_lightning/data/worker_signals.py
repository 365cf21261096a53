# SPDX-License-Identifier: Apache-2.0
"""Loader workers leave signals to the process that they load for, which looks whether they run.

Ctrl-C and a scheduler's signals go to all processes of a job. A worker that died of one would take
the training process with it, before that has saved its state. So a worker ignores them, but for a
SIGTERM of its own parent, by which torch ends workers that hang. It ends with its parent: torch
looks for that too, but a worker that starts while its parent is killed takes another one for it.

A stopped worker, by SIGSTOP or a debugger, sends nothing and does not end: the run would wait for
ever. It is killed after a minute, of which torch tells. One that is slow is waited for as long as
it takes.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Time between two looks at the workers, and at the parent."""
MAX_LOOKS = 12
"""Looks at which a worker may be found stopped before it is ended; it may be continued."""


def leave_signals_to_parent(worker_id: int) -> None:
    """Ignore signals but those of the parent; torch calls this as `worker_init_fn`.

    Args:
        worker_id: number of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigtimedwait"):
        return  # not on Linux: workers are ended with their group
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads started later inherit it
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_obey, args=(parent.pid,), daemon=True).start()


def _obey(parent: int | None) -> None:
    while os.getppid() == parent:
        told = signal.sigtimedwait({signal.SIGTERM}, LOOK_SECONDS)
        if told and told.si_pid == parent:
            break
    os._exit(0)


class ErrorsAsItems(Dataset[Any]):
    """Items, or errors as items: torch adds a traceback to raised ones, then waits for workers.

    Args:
        items: the items by number.
    """

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitem__(self, number: int) -> Any:
        """An item, or the error in its place."""
        try:
            return self.items[number]
        except ValueError as error:
            return error


def end_stopped(workers: Sequence[int]) -> None:
    """Kill workers that stay stopped, until all have ended; runs in a thread.

    Looks are counted, not seconds: where the whole job was stopped, it continues as a whole.

    Args:
        workers: numbers of the workers' processes.
    """
    looks = Counter[int]()
    while states := {pid: state for pid in workers if (state := _state(pid))}:
        looks = Counter({pid: looks[pid] + 1 for pid, state in states.items() if state in "Tt"})
        for pid, number in looks.items():
            if number > MAX_LOOKS:
                logger.error("loader worker %d is stopped, by SIGSTOP or a debugger: ended", pid)
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)


def _state(pid: int) -> str:
    """State of a process, one letter; empty if it has ended, or there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
