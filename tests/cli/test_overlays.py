# SPDX-License-Identifier: Apache-2.0
"""The overlays, each as a second --config; those of several processes as a user would type them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from scm_lightning.cli import main

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
OVERLAYS = sorted(file.stem for file in (CONFIGS / "overlays").glob("*.yaml"))


def words(stage, name, overlay, folder, **options):
    """Arguments of a run of two steps below a folder."""
    fixed = {
        "trainer.default_root_dir": folder / f"{name}_{overlay}",
        "data.init_args.root": folder / "shards",
        "data.init_args.num_val_samples": 21,
        "data.init_args.num_test_samples": 21,
        "data.init_args.num_predict_samples": 21,
        "data.init_args.sample_batch_size": 10,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 1,  # a step after a validation, too
        "trainer.enable_model_summary": "false",
        "trainer.enable_progress_bar": "false",
    }
    configs = [f"{name}.yaml", f"overlays/{overlay}.yaml"]
    given = {**fixed, **{key.replace("__", "."): value for key, value in options.items()}}
    return [
        stage,
        *(f"--config={CONFIGS / config}" for config in configs),
        *(f"--{key}={value}" for key, value in given.items()),
    ]


def type_in(*arguments):
    """`python -m scm_lightning` with two processes on the CPU; what it printed."""
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.precision=32-true"]
    done = subprocess.run(
        [sys.executable, "-m", "scm_lightning", *arguments, *two],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Starting with 2 processes" in done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher of two steps, trained by two processes under DDP."""
    folder = tmp_path_factory.mktemp("overlays")
    type_in(*words("fit", "digits_teacher", "ddp", folder))
    return folder


@pytest.fixture(scope="module")
def student(teacher):
    """A student of that teacher, of two steps, trained by two processes under FSDP2."""
    options = {"model__init_args__teacher": last(teacher, "digits_teacher_ddp")}
    type_in(*words("fit", "digits_scd", "fsdp2", teacher, **options))
    return lambda stage: words(stage, "digits_scd", "fsdp2", teacher, **options)


def last(folder, run):
    return folder / run / "checkpoints" / "last.ckpt"


def metrics(folder, run):
    return (folder / run / "metrics.csv").read_text()


def test_every_overlay_is_run_here():
    assert OVERLAYS == ["cpu", "ddp", "debug", "fsdp2", "sweep"]  # sweep: test_sweep_run.py


@pytest.mark.parametrize("overlay", ["cpu", "debug"])
def test_overlays_of_one_process(overlay, tmp_path):
    """Its values win over the configuration's; typed ones win over both."""
    main(words("fit", "digits_teacher", overlay, tmp_path))
    folder = tmp_path / f"digits_teacher_{overlay}"
    overlaid = yaml.safe_load((CONFIGS / "overlays" / f"{overlay}.yaml").read_text())
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in overlaid["trainer"].items():
        if key not in ("default_root_dir", "max_steps", "val_check_interval"):
            assert saved["trainer"][key] == value
    assert saved["trainer"]["max_steps"] == 2
    assert "val/fd21_teacher" in metrics(tmp_path, folder.name)


def test_ddp_trains_in_two_processes(teacher):
    """One run with one log and one checkpoint, which counts the images of both."""
    checkpoint = torch.load(last(teacher, "digits_teacher_ddp"), weights_only=True)
    assert checkpoint["global_step"] == 2
    assert int(checkpoint["state_dict"]["ema.num_images"]) == 2 * 2 * 128
    log = metrics(teacher, "digits_teacher_ddp")
    assert log.count("val/fd21_teacher") == 1


def test_fsdp2_leaves_a_checkpoint_for_one_process(student, teacher, capsys):
    """`scm test` of it runs here, alone, without a strategy."""
    run = "digits_scd_fsdp2"
    checkpoint = torch.load(last(teacher, run), weights_only=True)
    assert int(checkpoint["state_dict"]["ema.num_images"]) == 2 * 2 * 128
    assert checkpoint["state_dict"]["student.input.weight"].shape == (256, 64)
    assert "val/fd21_2_step" in metrics(teacher, run)
    main([*student("test"), "--trainer.strategy=auto", "--trainer.devices=1"])
    assert "student, 2 steps" in capsys.readouterr().out


def test_predict_joins_the_samples_of_all_processes(student, teacher):
    """The same samples as those of one process, in their order."""
    file = teacher / "digits_scd_fsdp2" / "samples" / "samples.npz"
    type_in(*student("predict"))
    together = dict(np.load(file))
    alone = ["--trainer.strategy=auto", "--trainer.devices=1", "--trainer.precision=32-true"]
    main([*student("predict"), *alone])
    expected = dict(np.load(file))
    assert together["indices"].tolist() == list(range(21))
    assert together["labels"].tolist() == [*range(10), *range(10), 0]
    assert together.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(together[name], values, atol=1e-4)
