# SPDX-License-Identifier: Apache-2.0
"""A process that is stopped or killed ends the other one, which says who it was."""

import subprocess
import time
from types import SimpleNamespace

import pytest

from scm_lightning.callbacks import LostProcess, lost_process


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


def test_a_process_that_is_paused_goes_on(guarded):
    found = guarded[1]["paused"]["first"]
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


def test_only_the_process_itself_is_killed():
    """Not another of its number: started later, or in a container with the same host name."""
    with subprocess.Popen(["sleep", "60"]) as process:
        own = lost_process._place(process.pid)
        number, *marks = own.split()
        lost = LostProcess()
        for changed in range(len(marks)):
            others = [mark + "0" * (at == changed) for at, mark in enumerate(marks)]
            lost._places = [" ".join([number, *others])]
            lost._kill_here(0)
        time.sleep(0.1)
        assert process.poll() is None
        lost._places = [own]
        lost._kill_here(0)
        assert process.wait() == -9
