# SPDX-License-Identifier: Apache-2.0
"""Signals to commands that have nothing to save: one line, a code, nothing left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scm_lightning.ending import LAUNCHER

WAITS = """
import os, sys, time
from scm_lightning.cli.early_signals import end_in_one_line
end_in_one_line(sys.argv[1] == "launched")
if sys.argv[2] == "child":
    if not os.fork():  # the signal comes when the child is a process of its own
        print("ready", flush=True)
    time.sleep(600)
if sys.argv[2] == "blocked":  # the main thread waits for another one, as in a collective
    import ctypes
    print("ready", flush=True)
    libc = ctypes.CDLL(None)
    lock = ctypes.create_string_buffer(64)
    libc.pthread_mutex_init(lock, None)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)
try:
    print("ready", flush=True)
    time.sleep(600)
finally:
    print("cleaned up", flush=True)
"""


def takes_signals(pid):
    """Whether a process has installed its handlers; before, Python's own say what they say."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)


def signalled(*words, signum=signal.SIGTERM):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline().strip()
    process.send_signal(signum)
    out, err = process.communicate(timeout=200)  # pytest ends what hangs
    return process.returncode, err, first, out


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 75)])
def test_one_line_and_a_code_after_cleaning_up(name, code):
    found = signalled("own", "", signum=signal.Signals[name])
    assert found == (code, f"scm: stopped by {name}\n", "ready", "cleaned up\n")


def test_a_launched_process_leaves_the_line_to_its_launcher():
    assert signalled("launched", "")[:2] == (143, "")


def test_a_process_that_waits_in_foreign_code_ends():
    """Python would run no handler there."""
    assert signalled("own", "blocked")[:2] == (143, "scm: stopped by SIGTERM\n")


def test_a_child_ends_too():
    """It holds the other end of the pipes, which are read to their end here."""
    assert signalled("own", "child")[:2] == (143, "scm: stopped by SIGTERM\n")


@pytest.mark.parametrize("moment", ["imported", "parsed"])
def test_a_command_that_is_imported_or_parsed_ends_in_one_line(tmp_path, moment):
    """As soon as it takes signals; and while it reads its configuration, which is a pipe here."""
    # Another test of this process may have run a command, which would be its launcher.
    own = {name: value for name, value in os.environ.items() if name != LAUNCHER}
    config = tmp_path / "config.yaml"
    os.mkfifo(config)
    command = [sys.executable, "-m", "scm_lightning", "test", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=own)
    while not takes_signals(process.pid):
        time.sleep(0.01)
    # Waits for the command to read, and leaves it without a word.
    writer = os.open(config if moment == "parsed" else os.devnull, os.O_WRONLY)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=200)[1] == "scm: stopped by SIGINT\n"
    assert process.returncode == 130
    os.close(writer)
