# SPDX-License-Identifier: Apache-2.0
"""A process that is stopped or killed ends the other one, which says who it was."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from scm_lightning.callbacks import LostProcess
from scm_lightning.ending import LAUNCHER


@pytest.mark.parametrize(
    ("name", "codes", "message"),
    [
        (
            "hung",
            [-9, 2],
            "0 of 2 is lost: it did not take part in all_reduce after step 4",
        ),
        (
            "killed",
            [2, -9],
            "1 of 2 is lost: it did not take part in the reduction of grad",
        ),
    ],
)
def test_the_others_end_and_name_it(guarded, name, codes, message):
    """The one that hangs has the store of the job, and does not end by itself."""
    found = guarded[1][name]["first"]
    assert found["codes"] == codes, found["log"]
    assert found["left"] == 0
    assert f"error: process {message}" in found["log"]


@pytest.mark.parametrize("name", ["paused"])
def test_a_process_that_is_paused_goes_on(guarded, name):
    found = guarded[1][name]["first"]
    assert found["codes"] == [0, 0], found["log"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails in 0", "only process 0 computes this"),
        ("fails in 1", "only process 1 computes this"),
        ("fails everywhere", "all processes compute this"),
    ],
)
def test_a_failure_ends_all_processes_and_is_said_once(guarded, name, message):
    """Whichever of them it is, and not by the timeout, which is longer than the test waits."""
    found = guarded[1][name]["first"]
    assert found["codes"] == [2, 2], found["log"]
    assert [line for line in found["log"].splitlines() if "error" in line] == [f"error: {message}"]
    assert "lost" not in found["log"]


def test_a_killed_loader_worker_is_said_in_one_line():
    trainer, message = SimpleNamespace(world_size=1), "DataLoader worker (pid 7) is killed by"
    with pytest.raises(ChildProcessError, match="loader worker 7 was ended from outside"):
        LostProcess().on_exception(trainer, None, RuntimeError(message))


def test_an_impossible_timeout_is_refused():
    with pytest.raises(ValueError, match="at least 1 second, got 0"):
        LostProcess(timeout=0)


@pytest.mark.parametrize(("launches", "code"), [(True, -signal.SIGKILL), (False, 0)])
def test_the_launcher_is_killed_and_no_shell(launches, code):
    """A process knows by its environment whether its parent has launched it as one of a run."""
    leaf = [sys.executable, "-c", "from scm_lightning.ending import kill_launcher; kill_launcher()"]
    parent = "import os, subprocess, sys; os.environ.pop(sys.argv[1], None)\n"
    parent += "if sys.argv[2] == 'True': os.environ[sys.argv[1]] = str(os.getpid())\n"
    parent += "subprocess.run(sys.argv[3:], check=True)"
    command = [sys.executable, "-c", parent, LAUNCHER, str(launches), *leaf]
    assert subprocess.run(command).returncode == code
