# SPDX-License-Identifier: Apache-2.0
"""A loader's worker outlives the signals of a job, and obeys its parent."""

import os
import signal
import subprocess
import time

import pytest
import torch

from scm_lightning.data import Batch, worker_signals
from scm_lightning.data.loader import NumberedBatches, TrainingLoader
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
