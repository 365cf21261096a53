# SPDX-License-Identifier: Apache-2.0
"""A command that is asked to stop where there is nothing to save ends in one line.

    SIGINT     Ctrl-C                         exit code 130
    SIGTERM    the end of a job               exit code 143
    SIGUSR1    the scheduler will end it      exit code 75, "run it again"

So it is from the first import on, in `scm test`, `predict`, `prepare` and the others to their end,
and in `scm fit` until a training takes note of signals itself: see `callbacks.stop_signals`. The
handler raises, so that files which are half written are removed on the way out; the third Ctrl-C
quits at once. A signal to this process alone is passed on to those that it has launched.

Python runs a handler only between two of its own instructions. A process that waits for the others
of its run is in none for as long as it waits, so a thread ends it there.
"""

import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import FrameType

EXIT_CODES = {int(signal.SIGINT): 130, int(signal.SIGTERM): 143, int(signal.SIGUSR1): 75}
FORCING_INTERRUPTS = 3
"""Ctrl-C this often quits at once."""
WAITING_SECONDS = 0.5
"""A handler that has not run for so long does not, before what the process waits for is there."""


def end_in_one_line(is_launched: bool) -> None:
    """Install the handlers.

    Args:
        is_launched: whether another `scm` has launched this process, and says the line itself.
    """
    end = _End(is_launched)
    for signum in EXIT_CODES:
        signal.signal(signum, end.leave)
    signalled, noted = socket.socketpair()
    noted.setblocking(False)
    signal.set_wakeup_fd(noted.detach(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=end.leave_workers_alone)
    threading.Thread(target=end.watch, args=(signalled,), daemon=True).start()


class _End:
    """The end of this process by a signal."""

    def __init__(self, is_launched: bool) -> None:
        self.is_launched = is_launched
        self.received: list[int] = []

    def leave(self, signum: int, frame: FrameType | None) -> None:
        """The handler."""
        self.received.append(signum)
        if len(self.received) == 1:
            self._announce(signum)
        elif signum != signal.SIGINT:
            return  # schedulers and launchers repeat theirs
        elif self.received.count(signum) == FORCING_INTERRUPTS:
            os._exit(EXIT_CODES[signum])
        raise SystemExit(EXIT_CODES[signum])

    def watch(self, signalled: socket.socket) -> None:
        """End the process where the handler is not run. In a thread."""
        while number := signalled.recv(1):
            signum = number[0]
            time.sleep(WAITING_SECONDS)
            if not self.received and signal.getsignal(signum) == self.leave:
                self._announce(signum)
                os._exit(EXIT_CODES[signum])

    def leave_workers_alone(self) -> None:
        """Give a process that is forked the default handlers."""
        signal.set_wakeup_fd(-1)
        for signum in EXIT_CODES:
            if signal.getsignal(signum) == self.leave:
                signal.signal(signum, signal.SIG_DFL)

    def _announce(self, signum: int) -> None:
        """Say the line; send the signal to all children.

        Where a system does not list them, they end by `launcher`.
        """
        if not self.is_launched:
            os.write(2, f"scm: stopped by {signal.Signals(signum).name}\n".encode())
        if signum == signal.SIGINT:
            return  # a terminal sends that to all of them
        for listed in Path("/proc/self/task").glob("*/children"):
            for child in listed.read_text().split():
                os.kill(int(child), signum)
