# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a folder, whatever ends the other one."""

import errno
import fcntl
import os
import shutil
import signal
from contextlib import ExitStack

import pytest
from checkpoint_runs import fit, forked
from lightning.pytorch import Callback
from processes import beside

from scm_lightning.callbacks import Checkpoints
from scm_lightning.callbacks.folder_lock import lock_folder


class Waits(Callback):
    """Says that the first step is taken, and takes no other."""

    def __init__(self, is_there, worker=None):
        self.is_there, self.worker = is_there, worker

    def on_train_batch_end(self, trainer, *args):
        if self.worker is not None and os.fork() == 0:
            os.write(self.worker, str(os.getpid()).encode())
            signal.pause()  # as a loader's worker that outlives its owner
        self.is_there()
        signal.pause()


def test_a_second_run_is_refused_and_one_after_a_kill_is_not(tmp_path):
    """The first one is named; its end frees the folder at once, though a child of it lives on."""
    readable, writable = os.pipe()
    run = lambda is_there: fit(tmp_path, 9, callbacks=[Waits(is_there, writable)])  # noqa: E731
    with ExitStack() as ended_last:
        with beside(run) as other:
            worker = int(os.read(readable, 20))
            ended_last.callback(os.kill, worker, signal.SIGKILL)
            named = f"where process {other} on .* since 20.* does; wait"
            with pytest.raises(ValueError, match=named):
                fit(tmp_path, 9)
        assert len(fit(tmp_path, 3)[1]) == 9
    assert forked(lambda: fit(tmp_path, 6))[0] == 0  # a training that has ended holds nothing


class Fails(Callback):
    def on_train_batch_end(self, *args):
        raise KeyError("of the user's")


def test_a_training_that_fails_leaves_the_folder(tmp_path):
    with pytest.raises(KeyError):
        fit(tmp_path, 3, callbacks=[Fails()])
    assert forked(lambda: fit(tmp_path, 3))[0] == 0


def test_a_training_that_is_refused_leaves_no_folder(tmp_path):
    """What else is in the run's folder stays."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").touch()
    for folder in (tmp_path / "new", tmp_path / "there"):
        with pytest.raises(KeyError):
            fit(folder, 3, callbacks=[Refuses()])
    assert [each.name for each in tmp_path.rglob("*")] == ["there", "notes.txt"]


class Refuses(Callback):
    def on_fit_start(self, *args):
        raise KeyError("before anything was trained")


def test_where_there_are_no_locks_that_is_said(tmp_path, monkeypatch, capsys):
    def refuses(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuses)
    fit(tmp_path, 1)
    line = f"{tmp_path}/checkpoints cannot be locked against a second run in it: No locks available"
    assert line in capsys.readouterr().err
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / ".lock").mkdir(parents=True)
    assert lock_folder(tmp_path / "checkpoints") is None
    assert "cannot be locked against a second run in it: Is a directory" in capsys.readouterr().err


def test_a_trial_run_needs_no_lock(tmp_path):
    with beside(lambda is_there: fit(tmp_path, 9, callbacks=[Waits(is_there)])):
        fit(tmp_path, 9, None, fast_dev_run=1)


def test_a_folder_that_cannot_be_made_is_one_line_at_the_start(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(ValueError, match="checkpoints cannot be made: File exists; give another"):
        fit(tmp_path, 1)


def test_all_processes_are_refused(tmp_path):
    """Only the first one looks; the others would wait for it."""
    found = []

    class Strategy:
        def broadcast(self, failure):
            found.append(failure)
            return failure or "one run at a time"

    class Second:
        is_global_zero, strategy = False, Strategy()

    with pytest.raises(ValueError, match="one run at a time"):
        Checkpoints(str(tmp_path))._take_folder(Second())
    assert found == [None]
