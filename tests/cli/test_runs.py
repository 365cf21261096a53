# SPDX-License-Identifier: Apache-2.0
"""The shipped configurations, run for a few steps through the command line, stage by stage."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from scm_lightning.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
STUDENTS = ["digits_scd", "digits_sct"]
GIVEN = ["digits_superres", "digits_inpaint"]
ALONE = ["digits_sct_scratch", "digits_mean_flow", "digits_alpha_flow", *GIVEN]
SAMPLES = "data.init_args.num_{}_samples"


def run(stage: str, name: str, folder: Path, options: dict[str, object]) -> Path:
    """One stage of a shipped configuration, with everything written below `folder`."""
    fixed = {
        "config": CONFIGS / f"{name}.yaml",
        "trainer.default_root_dir": folder / name,
        "data.init_args.root": folder / "shards",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
    }
    main([stage, *(f"--{key}={value}" for key, value in {**fixed, **options}.items())])
    return folder / name


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher of 40 steps: enough for its weights to have moved."""
    folder = tmp_path_factory.mktemp("runs")
    options = {
        "trainer.max_steps": 40,
        "model.init_args.lr_schedule.init_args.ramp_steps": 4,
        "trainer.val_check_interval": 20,
        "trainer.log_every_n_steps": 10,
        "diagnostics.every_n_steps": 10,
        SAMPLES.format("val"): 50,
    }
    run("fit", "digits_teacher", folder, options)
    return folder


@pytest.fixture(scope="module", params=STUDENTS)
def student(request, teacher):
    """A student of three steps, as a function that runs one of its later stages."""
    checkpoint = teacher / "digits_teacher" / "checkpoints" / "last.ckpt"
    fixed = {"model.init_args.teacher": checkpoint}
    steps = {"trainer.max_steps": 3, "trainer.val_check_interval": 3, SAMPLES.format("val"): 50}
    run("fit", request.param, teacher, fixed | steps)
    return lambda stage, options: run(stage, request.param, teacher, fixed | options)


def scores_of(root: Path) -> dict[str, dict[str, float]]:
    return json.loads((root / "metrics.json").read_text())


def test_every_shipped_configuration_is_run_here():
    """The digits', that is; test_configs.py runs all others."""
    found = sorted(file.stem for file in CONFIGS.glob("digits_*.yaml"))
    assert found == sorted(["digits_teacher", *STUDENTS, *ALONE])


@pytest.mark.parametrize("name", ALONE)
def test_training_without_a_teacher(name, teacher):
    """From random weights: three steps, and both step counts scored."""
    steps = {"trainer.max_steps": 3, "trainer.val_check_interval": 3, SAMPLES.format("val"): 50}
    run("fit", name, teacher, steps)
    scores = scores_of(run("test", name, teacher, {SAMPLES.format("test"): 50}))
    assert {"fd/floor", "fd/1_step", "fd/2_step"} <= set(scores)
    assert "fd/teacher" not in scores
    assert ("deviation/2_step" in scores) == (name in GIVEN)


@pytest.mark.parametrize("name", GIVEN)
def test_what_samples_were_given_is_drawn_beside_them(name, teacher):
    """Held-out image i without its details, or its hole, in data units as the samples are."""
    options = {"trainer.max_steps": 1, SAMPLES.format("val"): 50, SAMPLES.format("predict"): 30}
    run("fit", name, teacher, options)
    folder = run("predict", name, teacher, options) / "samples"
    with np.load(folder / "samples.npz") as drawn:
        given, samples = drawn["given"], drawn["1_step"]
    assert given.shape == samples.shape == (30, 1, 8, 8)
    blocks = given.reshape(30, 2, 4, 2, 4)
    same_in_blocks = np.ptp(blocks, axis=(2, 4)).max() < 1e-5
    assert same_in_blocks == (name == "digits_superres")
    assert {"given.png", "comparison.png"} <= {file.name for file in folder.iterdir()}


def test_fit_leaves_a_run(teacher):
    """Configuration, log, pictures, checkpoint: and the log holds distance and loss."""
    folder = teacher / "digits_teacher"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 40
    pictures = sorted(file.name for file in (folder / "samples").iterdir())
    assert pictures == ["step_0000020.png", "step_0000040.png"]
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "grad_norm", "val/fd50_teacher", "val/fd50_denoiser"} <= set(header)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 40


def test_a_saved_configuration_runs_again(teacher, tmp_path):
    """The config.yaml of a run is a configuration."""
    options = {
        "config": teacher / "digits_teacher" / "config.yaml",
        "trainer.default_root_dir": tmp_path,
        "checkpoints.dirpath": tmp_path,
        "trainer.max_steps": 1,
        "trainer.logger": "false",
    }
    main(["fit", *(f"--{key}={value}" for key, value in options.items())])
    assert (tmp_path / "last.ckpt").is_file()


def test_a_saved_configuration_is_left_alone_by_later_stages(teacher):
    """It names a logger, so that a stage has one: neither configuration nor log may change."""
    folder = teacher / "digits_teacher"
    before = (folder / "config.yaml").read_text(), (folder / "metrics.csv").read_text()
    main(["validate", f"--config={folder / 'config.yaml'}"])
    assert ((folder / "config.yaml").read_text(), (folder / "metrics.csv").read_text()) == before


def test_validate_logs_distances(student, capsys):
    student("validate", {SAMPLES.format("val"): 50})
    assert "val/fd50_2_step" in capsys.readouterr().out


def test_test_writes_scores_of_all_samplers(student, capsys):
    """Values, counts and seed for every row; no number is called FID."""
    samples = {SAMPLES.format("test"): 400, "data.init_args.sample_batch_size": 150}
    scores = scores_of(student("test", {**samples, "data.init_args.sample_seed": 7}))
    rows = ("floor", "teacher", "denoiser", "1_step", "2_step")
    for row in rows:
        for kind in ("fd", "fd_block", "accuracy", "nearest"):
            assert np.isfinite(scores[f"{kind}/{row}"]["value"])
            assert scores[f"{kind}/{row}"]["seed"] == 7
        assert scores[f"fd/{row}"]["num_samples"] == (360 if row == "floor" else 400)
        assert scores[f"fd_block/{row}"]["num_samples"] == 360
    assert [scores[f"nfe/{row}"]["value"] for row in rows[1:]] == [31, 1, 1, 2]
    assert len({scores[f"fd/{row}"]["value"] for row in rows}) == 5
    assert "no FID" in scores["protocol"]["distance"]
    printed = capsys.readouterr().out
    assert "student, 2 steps" in printed
    assert "held-out real" in printed


def test_later_stages_leave_the_log_of_the_training(student):
    """Lightning's CSV logger would remove it."""
    options = {SAMPLES.format("predict"): 10, SAMPLES.format("test"): 50}
    for stage in ("test", "predict"):
        root = student(stage, options)
        assert "val/fd50_2_step" in (root / "metrics.csv").read_text()


def test_scores_do_not_depend_on_the_batch_size(student):
    """Noise belongs to the sample: other batches, the same numbers."""
    values = []
    for batch_size in (400, 130):
        options = {SAMPLES.format("test"): 400, "data.init_args.sample_batch_size": batch_size}
        scores = scores_of(student("test", options))
        values.append([scores[f"fd/{row}"]["value"] for row in ("teacher", "1_step", "2_step")])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_predict_writes_pictures_and_samples(student):
    """Grids, the comparison, and samples whose labels run through the digits."""
    folder = student("predict", {SAMPLES.format("predict"): 30}) / "samples"
    samples = np.load(folder / "samples.npz")
    assert samples["2_step"].shape == (30, 1, 8, 8)
    assert samples["labels"].tolist() == [*range(10)] * 3
    assert samples["noise"].std() == pytest.approx(0.5, rel=0.1)
    comparison = np.array(Image.open(folder / "comparison.png"))
    assert comparison.shape == (6 * 50, 210 + 20 * 50, 3)
    for grid in ("teacher", "denoiser", "1_step", "2_step"):
        assert Image.open(folder / f"{grid}.png").size == (20 * 50, 2 * 50)
