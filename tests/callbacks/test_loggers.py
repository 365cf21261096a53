# SPDX-License-Identifier: Apache-2.0
"""Numbers and pictures of a run, as other loggers keep them: offline."""

from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from scm_lightning.callbacks.logged_pictures import log_numbers, log_picture, write_and_log


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(file)
    return file


def run_with(*loggers):
    return SimpleNamespace(loggers=loggers, global_step=7)


def test_tensorboard_has_the_pixels_and_the_numbers(picture, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path / "log", name="", version="")
    run = run_with(logger)
    log_picture(run, "val/samples", picture)
    log_numbers(run, {"test/fd_student": 0.5})
    logger.finalize("success")
    kept = accumulators.EventAccumulator(logger.log_dir).Reload()
    (image,) = kept.Images("val/samples")
    (number,) = kept.Scalars("test/fd_student")
    assert (image.step, image.width, image.height) == (7, 5, 4)
    assert (number.step, number.value) == (7, 0.5)


def test_weights_and_biases_has_the_file_and_the_numbers(picture, tmp_path, monkeypatch):
    """Without a network: what it would send lies in a folder."""
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    run = run_with(logger)
    log_picture(run, "val/samples", picture)
    log_numbers(run, {"test/fd_student": 0.5})
    assert logger.experiment.summary["test/fd_student"] == 0.5
    folder = logger.experiment.dir
    wandb.finish()
    (sent,) = (tmp_path / "wandb").glob("offline-run-*/files/media/images/val/samples_*.png")
    assert str(sent).startswith(folder)
    assert sent.read_bytes() == picture.read_bytes()


def test_a_log_without_pictures_has_the_numbers(picture, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    log_picture(run_with(logger), "val/samples", picture)
    log_numbers(run_with(logger), {"test/fd_student": 0.5})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,test/fd_student", "7,0.5"]


def test_a_picture_that_could_not_be_drawn_is_not_logged(tmp_path, capsys):
    logged = []
    logger = SimpleNamespace(log_image=lambda *of_picture, step: logged.append(of_picture))
    run = run_with(logger)
    assert not write_and_log(run, "a", tmp_path / "a.png", lambda: 1 / 0)
    assert logged == []
    assert "could not be drawn" in capsys.readouterr().err
    assert write_and_log(run, "b", tmp_path / "b.png", lambda: Image.new("RGB", (2, 2)))
    assert logged == [("b", [str(tmp_path / "b.png")])]
