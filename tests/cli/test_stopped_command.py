# SPDX-License-Identifier: Apache-2.0
"""Signals to `scm fit` with two processes, as Lightning's own launcher starts them."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_overlays import ROOT, last, words

pytestmark = pytest.mark.slow
OPTIONS = {"trainer.max_steps": 100_000, "trainer.val_check_interval": 100_000}


@pytest.fixture
def command(tmp_path):
    """A run that has saved its second step; its process, and its folder."""
    options = [f"--{key}={value}" for key, value in OPTIONS.items()]
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.precision=32-true"]
    arguments = [*words("fit", "digits_teacher", "ddp", tmp_path), *options, *two]
    process = subprocess.Popen(
        [sys.executable, "-m", "scm_lightning", *arguments, "--checkpoints.every_n_train_steps=2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 200
    while not last(tmp_path, "digits_teacher_ddp").exists() and time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.1)
    yield process, last(tmp_path, "digits_teacher_ddp")
    if left_of(process):
        os.killpg(process.pid, signal.SIGKILL)


def left_of(process):
    """Processes of its session that still run."""
    listed = subprocess.run(["ps", "-eo", "sid=,stat="], capture_output=True, text=True).stdout
    sessions = [line.split() for line in listed.splitlines()]
    return sum(sid == str(process.pid) and not state.startswith("Z") for sid, state in sessions)


def child_of(process):
    """The second process of the run."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    (child,) = [pid for pid, parent in pairs if parent == process.pid]
    return child


@pytest.mark.parametrize(
    ("signum", "to", "code"),
    [(signal.SIGTERM, "first", 143), (signal.SIGUSR1, "second", 75), (signal.SIGINT, "all", 130)],
)
def test_it_saves_and_ends_with_its_code(command, signum, to, code):
    process, file = command
    if to == "all":
        os.killpg(process.pid, signum)
    else:
        os.kill(process.pid if to == "first" else child_of(process), signum)
    _, printed = process.communicate(timeout=200)
    assert process.returncode == code, printed[-3000:]
    assert f"stopped by {signal.Signals(signum).name} after step" in printed
    step = torch.load(file, weights_only=True)["global_step"]
    assert f"after step {step}; saved" in printed
    assert left_of(process) == 0


def test_if_the_first_process_is_killed_the_second_ends_too(command):
    process, _ = command
    process.kill()
    process.wait()
    end = time.monotonic() + 200
    while left_of(process) and time.monotonic() < end:
        time.sleep(0.2)
    assert left_of(process) == 0
