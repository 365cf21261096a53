# SPDX-License-Identifier: Apache-2.0
"""The end of a process from a signal's handler or a thread: at once, and without a trace.

A handler may come between any two instructions of Python: within an import, a `__del__`, a fork. An
exception that it raised there would be shown and forgotten, and the program would go on. So nothing
here raises or waits, and no code of the interrupted program runs any more.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from scm_lightning.whole_files import remove_unfinished

LAUNCHER = "SCM_LAUNCHER_PID"
"""Environment variable of the process that started this one. A fork has that of its parent."""


def end_at_once(code: int) -> NoReturn:
    """End this process and its children; files that are not whole yet are removed.

    Args:
        code: exit code.
    """
    end_children()
    with suppress(Exception):
        remove_unfinished()
    os._exit(code)


def end_children() -> None:
    """Kill forks of this process; ask programs that it has started to end, as they can save.

    Where a system does not list them, they end by themselves once this process is gone.
    """
    own = f"{LAUNCHER}={os.getpid()}".encode()
    for thread in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has just ended
            for child in map(int, thread.read_text().split()):
                with suppress(OSError):  # so has the child
                    is_program = own in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                    os.kill(child, signal.SIGTERM if is_program else signal.SIGKILL)


def kill_launcher() -> None:
    """Kill the process that has launched this one as a further one of its run, if one has."""
    own = f"{LAUNCHER}={os.getppid()}".encode()
    with suppress(OSError):  # where a system does not tell, that process stays
        if own in Path("/proc/self/environ").read_bytes().split(b"\0"):
            os.kill(os.getppid(), signal.SIGKILL)
