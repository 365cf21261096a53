# SPDX-License-Identifier: Apache-2.0
"""Real disks that refuse a running training: read-only, full, or not ours to write to."""

import os
import subprocess
from contextlib import suppress

import pytest
from checkpoint_runs import batches, fit, forked, state_hash, training_rows
from lightning.pytorch import Callback

from scm_lightning.storage import History

STEPS = 18


def mount(*words):
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    (tmp_path / "disk").mkdir()
    if os.geteuid() or not mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path / "disk"):
        pytest.skip("only root can mount a disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", tmp_path / "disk"], check=False)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, fit(folder, STEPS)[1]


class After(Callback):
    """Does something to the disk after a step, once."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step and self.action is not None:
            for each in trainer.checkpoint_callbacks:
                each._leave_folder()  # a disk with a file that is open to write is busy
            self.action()
            self.action = None


class Wordy(Callback):
    """Rows of a kilobyte: a block of a disk that is full may have room for a few small ones."""

    def on_train_batch_end(self, trainer, *args):
        extra = {f"extra{number}": trainer.global_step / 7 for number in range(50)}
        trainer.logger.log_metrics(extra, step=trainer.global_step)


def fill(folder):
    """Leave no byte."""
    with suppress(OSError), (folder / "filling").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def read_only(folder):
    assert mount("-o", "remount,ro", folder)


def belongs_to_another(folder):
    """This process is root no more."""
    for each in [folder, *folder.rglob("*")]:
        os.chmod(each, 0o755 if each.is_dir() else 0o644)
    os.setuid(65534)


REPAIRS = {
    fill: lambda folder: (folder / "filling").unlink(),
    read_only: lambda folder: mount("-o", "remount,rw", folder),
    belongs_to_another: lambda folder: None,
}


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (fill, "No space left on device"),
        (read_only, "Read-only file system"),
        (belongs_to_another, "Permission denied"),
    ],
)
def test_a_checkpoint_that_cannot_be_written(breaks, reason, disk, unbroken):
    """One line with path and size; the one before stays; the repaired run is the unbroken one."""
    os.chmod(disk.parent, 0o755)
    folder = disk / "run"
    before = fit(folder, 5)[1]
    saved = state_hash(folder / "checkpoints" / "last.ckpt")
    callbacks = [After(6, lambda: breaks(disk))]
    code, printed = forked(lambda: fit(folder, STEPS, callbacks=callbacks))
    assert code == 1
    line = printed.split("Error: ")[-1].strip()
    assert "\n" not in line
    assert f"{folder}/checkpoints/last.ckpt could not be written: {reason}" in line
    assert ("bytes are needed" in line) == (reason == "No space left on device")
    REPAIRS[breaks](disk)
    assert History(folder / "checkpoints").newest().step == 5
    assert state_hash(folder / "checkpoints" / "last.ckpt") == saved
    assert before + fit(folder, STEPS)[1] == unbroken[1]
    assert training_rows(folder) == training_rows(unbroken[0])
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("breaks", [fill, read_only])
def test_a_log_that_cannot_be_written_waits(breaks, disk, unbroken, tmp_path, capsys):
    """The checkpoints are elsewhere; the log is whole in the end, and was refused once."""
    (tmp_path / "run").symlink_to(disk)
    folder = tmp_path / "run"
    (disk / "checkpoints").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    actions = [Wordy(), After(7, lambda: breaks(disk)), After(14, lambda: REPAIRS[breaks](disk))]
    assert fit(folder, STEPS, callbacks=actions)[1] == unbroken[1]
    assert training_rows(folder) == training_rows(unbroken[0])
    assert capsys.readouterr().err.count("metrics.csv could not be written") == 1


def test_a_log_that_stays_refused_ends_with_the_run(disk, unbroken, tmp_path):
    (disk / "checkpoints").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    assert len(fit(disk, STEPS, callbacks=[Wordy(), After(7, lambda: fill(disk))])[1]) == batches(
        STEPS
    )
    assert 0 < len(training_rows(disk)) < len(training_rows(unbroken[0]))
    assert History(tmp_path / "elsewhere").newest().step == STEPS
