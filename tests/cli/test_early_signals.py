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
from pathlib import Path
from scm_lightning.cli.early_signals import CommandEnd
from scm_lightning.whole_files import scratch_folder, written_whole
CommandEnd(sys.argv[1] == "launched").install()
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
if sys.argv[2] == "finalizer":  # what is raised in one is shown and forgotten
    class Waits:
        def __del__(self):
            print("ready", flush=True)
            time.sleep(600)
    Waits()
if sys.argv[2] == "files":
    place = Path(sys.argv[3])
    with written_whole(place / "file") as file, scratch_folder(place, ".new-") as folder:
        for half in (file, folder / "half"):
            half.write_text("half of it")
        print("ready", flush=True)
        time.sleep(600)
print("ready")  # waits in no buffer when the signal comes
time.sleep(600)
"""


def takes_signals(pid):
    """Whether a process has installed its handlers; before, Python's own say what they say."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)


def signalled(*words, signum=signal.SIGTERM, rank="0"):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, *words],
        env={**os.environ, "LOCAL_RANK": rank},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline().strip()
    process.send_signal(signum)
    out, err = process.communicate(timeout=200)  # pytest ends what hangs
    return process.returncode, err, first, out


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 75)])
def test_one_line_and_a_code(name, code):
    found = signalled("own", "", signum=signal.Signals[name])
    assert found == (code, f"scm: stopped by {name}\n", "ready", "")


def test_it_ends_where_python_forgets_what_is_raised():
    assert signalled("own", "finalizer")[:2] == (143, "scm: stopped by SIGTERM\n")


def test_nothing_is_left_half_written(tmp_path):
    assert signalled("own", "files", str(tmp_path))[0] == 143
    assert not list(tmp_path.iterdir())


def test_other_processes_of_a_run_leave_the_line_to_the_first():
    assert signalled("own", "", rank="1")[:2] == (143, "")


PARENT = """
import os, signal, subprocess, sys, time
from scm_lightning.cli.early_signals import CommandEnd
from scm_lightning.ending import LAUNCHER
os.environ[LAUNCHER] = str(os.getpid())
CommandEnd(False).install()
environment = {**os.environ, "LOCAL_RANK": "1"}
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env=environment)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("to", ["launcher", "launched"])
def test_a_launched_process_and_its_launcher_end_together(to):
    """Whichever is sent the signal: one line, one code, and both are gone."""
    command = [sys.executable, "-c", PARENT, WAITS, "launched", ""]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    launched = int(process.stdout.readline())
    assert process.stdout.readline() == "ready\n"
    os.kill(launched if to == "launched" else process.pid, signal.SIGUSR1)
    # Both hold the pipes, which are read to their end.
    assert process.communicate(timeout=200) == ("", "scm: stopped by SIGUSR1\n")
    assert process.returncode == 75


NOTES = """
from scm_lightning.cli.early_signals import handed_on
with handed_on() as received:
    print("waits", flush=True)
    print(child.wait(), received)
"""


def test_a_command_that_starts_others_waits_for_them():
    """They are asked to end, and it goes on itself."""
    script = PARENT.replace("time.sleep(600)", NOTES)
    command = [sys.executable, "-c", script, WAITS, "own", ""]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    assert {process.stdout.readline() for _ in range(2)} == {"ready\n", "waits\n"}
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=200)
    assert (out, err) == ("143 [10]\n", "scm: stopped by SIGUSR1\n")


def test_a_process_that_waits_in_foreign_code_ends():
    """Python would run no handler there."""
    assert signalled("own", "blocked")[:2] == (143, "scm: stopped by SIGTERM\n")


def test_a_child_ends_too():
    """It holds the other end of the pipes, which are read to their end here."""
    assert signalled("own", "child")[:2] == (143, "scm: stopped by SIGTERM\n")


@pytest.mark.parametrize("moment", ["imported", "parsed"])
def test_a_command_that_is_imported_or_parsed_ends_in_one_line(tmp_path, moment):
    """As soon as it takes signals; and while it imports what its configuration names."""
    # Another test of this process may have run a command, which would be its launcher.
    own = {name: value for name, value in os.environ.items() if name != LAUNCHER}
    own["PYTHONPATH"] = os.pathsep.join([str(tmp_path), own.get("PYTHONPATH", "")])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "waits.py").write_text(f"open({str(pipe)!r}).read()\n")
    command = [sys.executable, "-m", "scm_lightning", "test", "--model", "waits.Model"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=own)
    while not takes_signals(process.pid):
        time.sleep(0.01)
    # Waits for the command to read, and leaves it without a word.
    writer = os.open(pipe if moment == "parsed" else os.devnull, os.O_WRONLY)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=200)[1] == "scm: stopped by SIGINT\n"
    assert process.returncode == 130
    os.close(writer)
