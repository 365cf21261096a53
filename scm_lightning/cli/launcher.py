# SPDX-License-Identifier: Apache-2.0
"""Processes that a command has launched end with it.

`--trainer.devices 2` makes a command start itself again, once per further device. If the first
process is killed, the others would wait for it, up to half an hour in a reduction. They know it by
its number in the environment, so that nothing else that a shell starts is ended with it. What
torchrun starts says so in its environment, and would go on without it, too.
"""

import os
import threading
import time

from scm_lightning.ending import LAUNCHER

TORCHRUN = "TORCHELASTIC_RUN_ID"
GRACE_SECONDS = 5.0
"""Time to end by oneself."""
EXIT_ORPHANED = 70
"""EX_SOFTWARE of sysexits.h."""


def follow_launcher() -> bool:
    """Watch the process that launched this one, if one did; else be the one that is watched.

    Returns:
        Whether it was launched by another command of ours.
    """
    parent = os.getppid()
    is_ours = os.environ.get(LAUNCHER) == str(parent)
    if is_ours or TORCHRUN in os.environ:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ[LAUNCHER] = str(os.getpid())
    return is_ours


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(GRACE_SECONDS)
    os._exit(EXIT_ORPHANED)
