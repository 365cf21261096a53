# SPDX-License-Identifier: Apache-2.0
"""A loader's worker outlives the signals of a job, and obeys its parent."""

import multiprocessing
import os
import select
import signal
import subprocess
import time

import pytest
import torch

from scm_lightning.data import Batch, worker_signals
from scm_lightning.data.loader import NumberedBatches, TrainingLoader
from scm_lightning.data.worker_signals import leave_signals_to_parent

fork = multiprocessing.get_context("fork")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_signals_of_others_are_ignored_and_the_parents_obeyed():
    ready, tell = os.pipe()

    def work() -> None:
        leave_signals_to_parent(0)
        os.write(tell, b".")
        time.sleep(60)
        os._exit(1)

    worker = fork.Process(target=work)
    worker.start()
    os.read(ready, 1)
    for name in ("TERM", "INT", "USR1", "TERM"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    time.sleep(0.2)
    assert worker.exitcode is None
    worker.terminate()
    worker.join()
    assert worker.exitcode == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_worker_whose_parent_ended_before_it_began_ends_too():
    ended, tell = os.pipe()  # is at its end when nobody is left who could write

    def work(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.01)
        leave_signals_to_parent(0)
        time.sleep(600)

    def start_and_end() -> None:
        fork.Process(target=work, args=(os.getpid(),)).start()
        os.kill(os.getpid(), signal.SIGKILL)

    parent = fork.Process(target=start_and_end)
    parent.start()
    os.close(tell)
    assert select.select([ended], [], [], 300)[0], "the worker lives on"
    assert os.read(ended, 1) == b""


class Numbers(NumberedBatches):
    """A batch that takes a moment, or in which the worker stops."""

    elastic, num_samples = True, 700

    def __init__(self, stops_at):
        self.stops_at = stops_at

    def __getitem__(self, number):
        if number == self.stops_at:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.3)
        return Batch(torch.full((7, 3), float(number)), None, None)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("stops_at", [None, 3])
def test_a_stopped_worker_is_named_and_a_slow_one_is_waited_for(monkeypatch, caplog, stops_at):
    monkeypatch.setattr(worker_signals, "LOOK_SECONDS", 0.02)
    batches = iter(TrainingLoader(Numbers(stops_at), 7, 1, 1, 1, "fork"))
    if stops_at is None:
        assert [float(next(batches).x0[0, 0]) for _ in range(3)] == [0.0, 1.0, 2.0]
    else:
        with pytest.raises(RuntimeError, match=r"DataLoader worker .* (is killed|exited)"):
            list(batches)
        assert "is stopped, by SIGSTOP or a debugger" in caplog.text
    batches.close()
