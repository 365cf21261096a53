# SPDX-License-Identifier: Apache-2.0
"""The log of a run and its other side files: nothing is lost, and none of them ends a run."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from checkpoint_runs import fit, training_rows
from gaussian import PATH
from safetensors.torch import save_file
from tiny import loader, trainer

from scm_lightning import DiffusionModule
from scm_lightning.callbacks import BadNumbers, EMASnapshots, RunLog
from scm_lightning.callbacks.bad_numbers import FILE, _write
from scm_lightning.metrics.reference import read_kept
from scm_lightning.modules import PowerFunction
from scm_lightning.networks import MLP
from scm_lightning.storage.side_files import write_result

LOG = "step,epoch,train/loss\r\n0,0,1.5\r\n1,0,1.25\r\n2,0,1.125\r\n"


def rows(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def steps(file):
    return [int(row["step"]) for row in rows(file)]


def log_of(folder, text=LOG):
    (folder / "metrics.csv").write_bytes(text.encode())
    return RunLog(str(folder))


@pytest.mark.parametrize("stop", range(4, 8))
def test_a_run_may_stop_at_any_step(stop, tmp_path):
    """One of them has its first row written before the past of the log is read."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for folder, *ends in ((unbroken, 9), (broken, stop, 9)):
        for end in ends:
            fit(folder, end, callbacks=[BadNumbers()], val_check_interval=None)
    assert training_rows(broken) == training_rows(unbroken)
    assert not list(broken.glob("metrics.old-*"))


def test_columns_need_not_be_known_beforehand(tmp_path):
    """Before, after and without a start, and from a file with another order of columns."""
    log = log_of(tmp_path)
    log.log_metrics({"bad_steps": 0}, step=2)
    log.save()
    log.start_from(2)
    log.log_metrics({"train/loss": 1.0, "epoch": 0}, step=2)
    log.save()
    other = RunLog(str(tmp_path))
    other.log_metrics({"val/fd": 3.0}, step=3)
    other.save()
    assert [{k: v for k, v in row.items() if v} for row in rows(tmp_path / "metrics.csv")] == [
        {"step": "0", "epoch": "0", "train/loss": "1.5"},
        {"step": "1", "epoch": "0", "train/loss": "1.25"},
        {"step": "2", "bad_steps": "0"},
        {"step": "2", "epoch": "0", "train/loss": "1.0"},
        {"step": "3", "val/fd": "3.0"},
    ]
    assert [row["train/loss"] for row in rows(tmp_path / "metrics.old-1.csv")] == ["1.125"]


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    log = log_of(tmp_path, LOG + "3,0,1.0")
    log.log_metrics({"train/loss": 0.5, "epoch": 1}, step=4)
    log.save()
    assert steps(tmp_path / "metrics.csv") == [0, 1, 2, 4]


def test_rows_that_are_trained_once_more_are_kept_elsewhere(tmp_path, capsys):
    """From an earlier step, from nothing, and from nothing again; also what is of this start."""
    log = log_of(tmp_path)
    log.start_from(3)
    assert not list(tmp_path.glob("*.old-*"))
    log.start_from(1)
    log.finalize("success")
    log.log_metrics({"bad_steps": 0}, step=0)
    log.save()
    log.start_from(0)
    assert steps(tmp_path / "metrics.old-1.csv") == [1, 2]
    assert steps(tmp_path / "metrics.old-2.csv") == [0]
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "0", "epoch": "", "train/loss": "", "bad_steps": "0"}
    ]
    log.finalize("success")
    log.start_from(0)
    assert not (tmp_path / "metrics.csv").exists()
    assert steps(tmp_path / "metrics.old-3.csv") == [0]
    printed = capsys.readouterr().out
    assert f"later rows of {tmp_path}/metrics.csv are now in {tmp_path}/metrics.old-2" in printed


UNREADABLE = {
    "bytes 0": lambda file: file.write_bytes(LOG.encode() + bytes(40) + b"\r\n"),
    "UTF-16": lambda file: file.write_bytes(LOG.encode("utf-16")),
    "Latin-1": lambda file: file.write_bytes(LOG.replace("loss", "größe").encode("latin-1")),
    "another program's": lambda file: file.write_text("a,b\n1,2\n"),
    "a column twice": lambda file: file.write_text("step,step\n1,2\n"),
    "cut in its first line": lambda file: file.write_text("step,ep"),
    "a row too long": lambda file: file.write_text(LOG + "3,0,1.0,7\n"),
    "a word": lambda file: file.write_text(LOG + "three,0,1.0\n"),
    "a folder": lambda file: (file / "within").mkdir(parents=True),
    "a pipe": lambda file: os.mkfifo(file),
    "a device": lambda file: file.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.timeout(60)
def test_what_is_no_log_is_set_aside(name, tmp_path, capsys):
    """With a line, and as it was."""
    file = tmp_path / "metrics.csv"
    UNREADABLE[name](file)
    before = file.lstat()
    log = RunLog(str(tmp_path))
    log.start_from(2)
    for step in (2, 3):
        log.log_metrics({"train/loss": 0.5, f"new/{step}": 1.0}, step=step)
        log.save()
    aside = next(tmp_path.glob("metrics.*old-1*"))
    assert (aside.lstat().st_ino, aside.lstat().st_size) == (before.st_ino, before.st_size)
    assert steps(file) == [2, 3]
    printed = capsys.readouterr().err
    assert printed.count(f"{file} cannot be read as the log of a run: ") == 1
    assert f"{file} is now {aside}" in printed


def test_a_run_goes_on_without_its_log(tmp_path, capsys):
    """Through a whole training: a pipe in the place of the log, then nothing to write to."""
    os.mkfifo(tmp_path / "metrics.csv")
    fit(tmp_path, 2)
    assert len(training_rows(tmp_path)) == 2
    assert (tmp_path / "metrics.old-1.csv").is_fifo()


def stands_there(kind: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(place) if kind == "a pipe" else place.mkdir()


@pytest.mark.parametrize("kind", ["a pipe", "a folder"])
@pytest.mark.timeout(60)
def test_notes_and_results_are_written_where_something_else_stood(kind, tmp_path, capsys):
    """To open a pipe would wait for ever."""
    asides = {
        "a pipe": ("bad_numbers.old-1.jsonl", "metrics.old-1.json"),
        "a folder": (f"{FILE}.old-1", "metrics.json.old-1"),
    }
    for name in (FILE, "metrics.json"):
        stands_there(kind, tmp_path / name)
    _write(tmp_path / FILE, {"step": 3, "bad_steps": 11, "t": 0.7})
    write_result(tmp_path / "metrics.json", "{}")
    assert json.loads((tmp_path / FILE).read_text())["step"] == 3
    assert (tmp_path / "metrics.json").read_text() == "{}"
    printed = capsys.readouterr().err
    for name, aside in zip((FILE, "metrics.json"), asides[kind], strict=True):
        assert f"{tmp_path / name} is now {tmp_path / aside}" in printed
        assert (tmp_path / aside).exists()
    stands_there(kind, tmp_path / "kept.safetensors")
    with pytest.raises(ValueError, match="must be a regular file, got"):
        read_kept(tmp_path / "kept.safetensors")


@pytest.mark.timeout(60)
def test_snapshots_that_cannot_be_read_are_set_aside(tmp_path, capsys):
    """And later ones, which a run from nothing would remove."""
    folder = tmp_path / "ema"
    folder.mkdir()
    (folder / "cut.safetensors").write_bytes(b"\x10")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "folder.safetensors").mkdir()
    save_file({"x": torch.ones(3)}, folder / "other.safetensors")
    callbacks = [EMASnapshots(1)]
    module = DiffusionModule(MLP((3,), 16, 1, 8), path=PATH, ema=PowerFunction(0.1))
    trainer(2, callbacks=callbacks, default_root_dir=tmp_path).fit(module, loader())
    assert {each.name for each in folder.iterdir()} == {
        "0000001-0.1.safetensors",
        "0000002-0.1.safetensors",
    }
    names = ["cut", "folder", "other", "pipe"]
    aside = tmp_path / "ema.old-1"
    assert sorted(each.stem for each in aside.iterdir()) == names
    printed = " ".join(capsys.readouterr().out.split())
    assert f"4 snapshots in {folder} that are later or damaged are now in {aside}" in printed
