# SPDX-License-Identifier: Apache-2.0
"""A loader's worker outlives the signals of a job, and obeys its parent."""

import os
import signal
import subprocess
import time

import pytest

from scm_lightning.data.worker_signals import leave_signals_to_parent


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_signals_of_others_are_ignored_and_the_parents_obeyed():
    ready, tell = os.pipe()
    if (worker := os.fork()) == 0:
        leave_signals_to_parent(0)
        os.write(tell, b".")
        time.sleep(60)
        os._exit(1)
    os.read(ready, 1)
    for name in ("TERM", "INT", "USR1", "TERM"):
        subprocess.run(["kill", f"-{name}", str(worker)], check=True)
    time.sleep(0.2)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, signal.SIGTERM)
    assert os.waitpid(worker, 0)[1] == 0
