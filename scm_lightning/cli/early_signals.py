# SPDX-License-Identifier: Apache-2.0
"""A command that is asked to stop where there is nothing to save ends in one line.

    SIGINT     Ctrl-C                         exit code 130
    SIGTERM    the end of a job               exit code 143
    SIGUSR1    the scheduler will end it      exit code 75, "run it again"

So it is from the first import on, in `scm test`, `predict`, `prepare` and the others to their end,
and in `scm fit` until a training takes note of signals itself: see `callbacks.stop_signals`. The
handler ends the process where it is, and all that it has started: see `ending`. Of the processes
of a run the first says the line; one that it has launched hands the signal on to it.

Python runs a handler only between two of its own instructions. A process that waits for the others
of its run is in none for as long as it waits, so a thread ends it there. Nor does Python run one
while it takes itself down at the end, so the process ends before that.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType

from scm_lightning.ending import end_at_once, end_children

EXIT_CODES = {int(signal.SIGINT): 130, int(signal.SIGTERM): 143, int(signal.SIGUSR1): 75}
EXIT_PREEMPTED = 75
"""Exit code for any other signal that a scheduler is said to send."""
WAITING_SECONDS = 0.5
"""A handler that has not run for so long does not, before what the process waits for is there."""
END_OF_BAR = b"\n\x1b[?25h"
"""Leaves the line of a progress bar, and shows the cursor that it has hidden."""


class CommandEnd:
    """The end of this process, by a signal or by itself.

    Args:
        is_launched: whether another `scm` has launched this process.

    Attributes:
        code: exit code, if the process ends by itself.
    """

    def __init__(self, is_launched: bool) -> None:
        self.code = 1
        self._is_quiet = os.environ.get("LOCAL_RANK", "0") != "0"
        self._launcher = os.getppid() if is_launched and self._is_quiet else None
        self._owner = os.getpid()
        self._first = threading.Lock()

    def install(self) -> None:
        """Take signals from here on."""
        for signum in EXIT_CODES:
            signal.signal(signum, self.leave)
        signalled, noted = socket.socketpair()
        noted.setblocking(False)
        signal.set_wakeup_fd(noted.detach(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._leave_workers_alone)
        threading.Thread(target=self._watch, args=(signalled,), daemon=True).start()
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # no line waits in it when a signal comes
        atexit.register(self._finish)  # the first, and so the last that runs

    def leave(self, signum: int, frame: FrameType | None) -> None:
        """The handler."""
        if os.getpid() != self._owner:
            os._exit(EXIT_PREEMPTED)  # a fork that is no worker yet, whose parent sees that
        self._end_by(signum)

    def _end_by(self, signum: int) -> None:
        """End the process, unless it is being ended."""
        if not self._first.acquire(blocking=False):
            return
        if self._launcher == os.getppid():
            os.kill(self._launcher, signum)
        if not self._is_quiet:
            announce(signum)
        end_at_once(EXIT_CODES.get(signum, EXIT_PREEMPTED))

    def _watch(self, signalled: socket.socket) -> None:
        """End the process where the handler is not run. In a thread."""
        while number := signalled.recv(1):
            if signal.getsignal(number[0]) == self.leave:
                time.sleep(WAITING_SECONDS)
                self._end_by(number[0])

    def _leave_workers_alone(self) -> None:
        """Give a process that is forked the default handlers."""
        signal.set_wakeup_fd(-1)
        for signum in EXIT_CODES:
            if signal.getsignal(signum) == self.leave:
                signal.signal(signum, signal.SIG_DFL)

    def _finish(self) -> None:
        if os.getpid() == self._owner:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(self.code)


@contextmanager
def handed_on() -> Iterator[list[int]]:
    """Only note signals, and ask the programs that this one has started to end.

    For a command that starts others, which save what they have.

    Yields:
        The signals that have come.
    """
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if len(received) == 1:
            announce(signum)
            end_children()

    previous = {signum: signal.signal(signum, note) for signum in EXIT_CODES}
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def announce(signum: int) -> None:
    """Say on one line what has ended the command; in a handler, so not through a buffer.

    Args:
        signum: number of the signal.
    """
    with suppress(OSError):  # nobody reads what is said
        for terminal in [each for each in (1, 2) if os.isatty(each)][:1]:
            os.write(terminal, END_OF_BAR)
        os.write(2, f"scm: stopped by {signal.Signals(signum).name}\n".encode())
