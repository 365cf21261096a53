# SPDX-License-Identifier: Apache-2.0
"""Files of checkpoints: read as they were written, or refused; and what is there stays there."""

import errno
import os
import random
import resource
import shutil
import zipfile

import numpy as np
import pytest
import torch
from checkpoint_runs import batches, fit, forked, state_hash
from lightning.pytorch import Callback

from scm_lightning.callbacks import Checkpoints
from scm_lightning.storage import Checkpoint, History, SavedRun
from scm_lightning.teachers import load_teacher

CONTENT = {
    "global_step": 7,
    "state_dict": {"weight": torch.arange(3000.0)},
    "scm_lightning": {"module": "diffusion", "sigma_data": 0.7},
    "pytorch-lightning_version": "2.6.6",
}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    Checkpoint(tmp_path / "checkpoints" / "0000007.ckpt").write(CONTENT)
    return tmp_path / "checkpoints" / "0000007.ckpt"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of nine steps with a file every four."""
    folder = tmp_path_factory.mktemp("run")
    return folder, fit(folder, 9)[1]


def copy_of(run, folder):
    shutil.copytree(run[0], folder / "run")
    return folder / "run"


def test_what_is_written_is_read(file):
    """By us, by torch, and as the zip archive it is; the same content gives the same bytes."""
    Checkpoint(file).check()
    assert Checkpoint(file).step == 7
    for content in (
        Checkpoint(file).read(),
        SavedRun.read(file).content,
        torch.load(file, weights_only=True),
    ):
        assert torch.equal(content["state_dict"]["weight"], torch.arange(3000.0))
    assert zipfile.ZipFile(file).testzip() is None
    Checkpoint(file.with_name("again.ckpt")).write(CONTENT)
    assert file.with_name("again.ckpt").read_bytes() == file.read_bytes()
    assert sorted(each.name for each in file.parent.iterdir()) == ["0000007.ckpt", "again.ckpt"]


def test_every_flipped_bit_is_found(file):
    """Each of the last 1,200 bits, where checksum and step are, and a hundred anywhere."""
    whole, draw = file.read_bytes(), random.Random(0)
    size = 8 * len(whole)
    for bit in [*range(size - 1200, size), *(draw.randrange(size) for _ in range(100))]:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            Checkpoint(file).check()


def test_every_cut_is_found(file):
    whole, draw = file.read_bytes(), random.Random(0)
    lengths = [0, 1, len(whole) - 103, *(len(whole) - n for n in range(1, 130))]
    for length in [*lengths, *(draw.randrange(len(whole)) for _ in range(20))]:
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            Checkpoint(file).check()


def test_a_file_without_a_checksum_is_read_and_that_is_said(tmp_path, capsys):
    file = tmp_path / "other.ckpt"
    torch.save(CONTENT, file)
    Checkpoint(file).check()
    assert Checkpoint(file).step == 7
    for _ in range(2):
        assert SavedRun.read(file).content["global_step"] == 7
    assert " ".join(capsys.readouterr().out.split()).count("has no checksum: read unchecked") == 1


def test_damaged_files_of_a_run_are_passed_over(run, tmp_path):
    """A hundred flipped bits and twenty cuts, each of the newest file: the one before is taken."""
    folder, draw = copy_of(run, tmp_path) / "checkpoints", random.Random(3)
    newest, whole = folder / "last.ckpt", (folder / "last.ckpt").read_bytes()
    for number in range(120):
        if number < 100:
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        else:
            damaged = whole[: draw.randrange(len(whole))]
        newest.unlink()
        newest.write_bytes(damaged)
        found = History(folder).newest()
        assert (found.file, found.step) == (folder / "0000008.ckpt", 8)
        assert [file for file, _ in found.damaged] == [newest]
        with pytest.raises(ValueError, match="damaged"):
            SavedRun.read(newest)
    assert fit(folder.parent, 9)[1] == run[1][batches(8) :]
    aside = folder.with_name("checkpoints.old-1") / "last.ckpt"
    assert aside.read_bytes() == damaged
    assert History(folder).newest().file == newest


def test_a_damaged_file_is_refused_wherever_it_is_read(run, tmp_path):
    newest = copy_of(run, tmp_path) / "checkpoints" / "last.ckpt"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 3] ^= 4
    newest.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"another one: 0000004.ckpt, 0000008.ckpt in"):
        load_teacher(newest, torch.nn.Linear(1, 1), None)
    with pytest.raises(ValueError, match="does not fit its checksum"):
        fit(tmp_path / "other", 20, newest)


def test_what_could_not_be_loaded_is_not_saved(file):
    before = file.read_bytes()
    with pytest.raises(ValueError, match="must hold tensors, numbers and strings only"):
        Checkpoint(file).write({"global_step": 9, "array": np.ones(3)})
    assert file.read_bytes() == before
    assert [*file.parent.iterdir()] == [file]


def test_last_is_a_second_name_of_the_newest_file(run, tmp_path):
    folder = copy_of(run, tmp_path) / "checkpoints"
    names = {each.name: each.stat().st_ino for each in folder.glob("*.ckpt")}
    assert {*names} == {"0000004.ckpt", "0000008.ckpt", "last.ckpt"}
    assert Checkpoint(folder / "last.ckpt").step == 9
    History(folder).name(9, is_numbered=True)
    assert (folder / "0000009.ckpt").stat().st_ino == names["last.ckpt"]
    assert [step for step, _ in History(folder).steps()] == [9, 9, 8, 4]


def test_last_is_a_copy_where_there_are_no_second_names(file, monkeypatch):
    def refuses(*args):
        raise OSError(errno.EPERM, "not here")

    last = file.rename(file.with_name("last.ckpt"))
    monkeypatch.setattr(os, "link", refuses)
    History(last.parent).name(7, is_numbered=True)
    assert file.read_bytes() == last.read_bytes()
    assert file.stat().st_ino != last.stat().st_ino


def test_a_number_that_was_not_given_is_given_on_the_way(run, tmp_path):
    """A process was killed between `last.ckpt` and its second name."""
    folder = copy_of(run, tmp_path)
    os.replace(folder / "checkpoints" / "0000008.ckpt", folder / "checkpoints" / "last.ckpt")
    fit(folder, 9)
    assert Checkpoint(folder / "checkpoints" / "0000008.ckpt").step == 8


def test_a_shorter_run_overwrites_nothing(run, tmp_path, capsys):
    """One from nothing and one from an earlier file leave the longer run beside the folder."""
    folder = copy_of(run, tmp_path)
    before = state_hash(folder / "checkpoints" / "last.ckpt")
    (folder / "checkpoints" / "ema_0.1.ckpt").write_text("of scm reconstruct")
    fit(folder, 5, None)
    assert state_hash(folder / "checkpoints.old-1" / "last.ckpt") == before
    assert History(folder / "checkpoints").newest().step == 5
    fit(folder, 6, folder / "checkpoints" / "0000004.ckpt")
    assert Checkpoint(folder / "checkpoints.old-2" / "last.ckpt").step == 5
    names = sorted(each.name for each in (folder / "checkpoints").glob("*.ckpt"))
    assert names == ["0000004.ckpt", "ema_0.1.ckpt", "last.ckpt"]
    assert "training starts at step 0: later checkpoints in" in capsys.readouterr().out
    assert History(folder / "checkpoints").set_aside_later(6) is None


def test_what_a_killed_process_left_is_swept(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt.77.part").write_text("half")
    fit(tmp_path, 1)
    assert [each.name for each in (tmp_path / "checkpoints").glob("*ckpt*")] == ["last.ckpt"]


def test_a_trial_run_leaves_no_files_and_moves_none(run, tmp_path):
    folder = copy_of(run, tmp_path)
    fit(folder, 9, None, fast_dev_run=3)
    assert History(folder / "checkpoints").newest().step == 9
    assert not (folder / "checkpoints.old-1").exists()


def test_a_full_disk_costs_the_new_file_only(run, tmp_path):
    """A limit on the size of files stands in; it also stops the log, so there is none."""
    folder = copy_of(run, tmp_path)
    size = (folder / "checkpoints" / "last.ckpt").stat().st_size

    def on_a_full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        fit(folder, 20, logger=False)

    code, printed = forked(on_a_full_disk)
    line = " ".join(printed.split("OSError: ")[-1].split())
    assert code == 1
    assert "last.ckpt could not be written: File too large, where" in line
    needed = int(line.split("where ")[1].split(" bytes")[0].replace(",", ""))
    assert needed == pytest.approx(size, rel=0.01)
    names = sorted(each.name for each in (folder / "checkpoints").glob("*.ckpt"))
    assert names == ["0000004.ckpt", "0000008.ckpt", "last.ckpt"]
    assert fit(folder, 9, folder / "checkpoints" / "0000008.ckpt")[1] == run[1][batches(8) :]


class Removes(Callback):
    """Removes a folder after the tenth step."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 10 and self.folder.exists():
            shutil.rmtree(self.folder)


def test_a_removed_folder(run, tmp_path):
    """Somebody removes the run, or a disk is gone: an error, though others make folders again."""
    gone = r"the folder .*checkpoints is gone; earlier checkpoints"
    for removed in (".", "checkpoints"):
        folder = copy_of(run, tmp_path / removed)
        with pytest.raises(OSError, match=gone):
            fit(folder, 14, callbacks=[Removes(folder / removed)])
        assert not (folder / "checkpoints").exists()


def test_a_failure_is_one_in_all_processes(tmp_path):
    """The others wait for the first one after each file; it joins them before it fails."""
    calls = []

    class Strategy:
        def barrier(self, name):
            calls.append(name)

        def broadcast(self, message):
            calls.append(message)
            return message

    class Failing:
        loggers, strategy, is_global_zero, global_step = (), Strategy(), True, 3

        def save_checkpoint(self, file, weights_only):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Checkpoints(str(tmp_path))._save(Failing())
    assert calls == ["Trainer.save_checkpoint", "disk full"]


def test_numbers_are_checked():
    with pytest.raises(ValueError, match="every_n_train_steps of checkpoints must be at least 1"):
        Checkpoints(every_n_train_steps=0)
