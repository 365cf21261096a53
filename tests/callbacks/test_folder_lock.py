# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a folder, whatever ends the other one; and readers beside it."""

import errno
import fcntl
import os
import shutil
import signal
import time
from contextlib import ExitStack, contextmanager

import pytest
import torch
from checkpoint_runs import fit, forked
from lightning.pytorch import Callback
from test_checkpoint_parts import content, in_processes, save
from torch import distributed

from scm_lightning.callbacks import Checkpoints, checkpoint_folder
from scm_lightning.callbacks.checkpoint_folder import link_last, numbered, unnumbered
from scm_lightning.callbacks.folder_lock import lock_folder
from scm_lightning.teachers import read_checkpoint
from scm_lightning.teachers.checkpoint_files import step_of, write_checkpoint
from scm_lightning.teachers.checkpoint_parts import check_checkpoint, load_checkpoint

READS = 300


@contextmanager
def beside(action):
    """Another process, while it does something; it is killed."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action(lambda: os.write(writable, b"."))
        finally:
            os._exit(1)
    os.read(readable, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(readable)
        os.close(writable)


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


def of_step(step):
    """Weights that are all the step, of a size that changes too."""
    return {
        "global_step": step,
        "state_dict": {f"w{n}": torch.full((9000 + step % 5,), float(step)) for n in range(3)},
        "scm_lightning": {"module": "diffusion", "sigma_data": 0.7},
        "pytorch-lightning_version": "2.6.6",
    }


def test_a_file_that_is_replaced_is_read_whole(tmp_path):
    """Old or new, never parts of both, and never as damaged; also what was only mapped."""
    file = tmp_path / "last.ckpt"
    write_checkpoint(of_step(0), file)

    def train(is_there):
        for step in range(1, 1 << 30):
            write_checkpoint(of_step(step), file)
            is_there()

    mapped = read_checkpoint(file)
    with beside(train):
        for _ in range(READS):
            for found in (read_checkpoint(file), load_checkpoint(file)):
                assert all((x == found["global_step"]).all() for x in found["state_dict"].values())
            check_checkpoint(file)
            assert step_of(file) is not None
    assert all((x == 0).all() for x in mapped["state_dict"].values())


def test_a_folder_that_is_replaced_is_read_whole(tmp_path):
    """The link names another folder, and the one that it named is removed."""
    folder = tmp_path / "checkpoints"
    assert in_processes(lambda rank, mesh: [save(folder, step, mesh) for step in (4, 8)])

    def train(is_there):
        for step in range(9, 1 << 30):
            shutil.copytree(folder / numbered((4, 8)[step % 2]), folder / "half.part")
            os.replace(folder / "half.part", folder / unnumbered(step))
            link_last(folder, unnumbered(step))
            is_there()
            time.sleep(0.01)  # or every reading would begin several times

    with beside(train):
        for _ in range(READS):
            found = load_checkpoint(folder / "last.ckpt")
            expected = content(found["global_step"])["state_dict"]
            assert all(torch.equal(found["state_dict"][name], x) for name, x in expected.items())


def test_all_processes_load_the_same(tmp_path, monkeypatch):
    """The file is replaced after the first process has read it, and before the second does."""
    file = tmp_path / "last.ckpt"
    write_checkpoint(of_step(4), file)

    def read(rank, mesh):
        if rank == 1:
            distributed.barrier()
        original = checkpoint_folder.load_checkpoint

        def load(path):
            found = original(path)
            monkeypatch.setattr(checkpoint_folder, "load_checkpoint", original)
            if rank == 0:
                write_checkpoint(of_step(8), file)
                distributed.barrier()
            return found

        monkeypatch.setattr(checkpoint_folder, "load_checkpoint", load)
        assert checkpoint_folder.WholeFiles().load_checkpoint(file)["global_step"] == 8

    assert in_processes(read)
