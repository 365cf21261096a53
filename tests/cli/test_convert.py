# SPDX-License-Identifier: Apache-2.0
"""`scm convert`: a student of edm2_sCM draws, is exported and trains on as a run of ours."""

import math

import numpy as np
import pytest
import torch
from small_sets import write_set
from teachers.sources_edm2 import (
    NUM_CLASSES,
    SHAPE,
    SIGMA_DATA,
    Source,
    trained,
    write_edm2,
    write_edm2_scm,
)

from scm_lightning.cli import main
from scm_lightning.core import TrigFlow
from scm_lightning.storage import Export, SavedRun
from scm_lightning.teachers import load_teacher
from scm_lightning.teachers.edm2_scm import EDM2SCMFile

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.devices=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Noise, as pixels, with labels."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    images = np.random.default_rng(0).integers(0, 256, (24, *SHAPE)).astype(np.uint8)
    splits = dict.fromkeys(("train", "heldout"), (images, np.arange(24) % NUM_CLASSES))
    write_set(folder, splits, NUM_CLASSES, 255.0, 10)
    return folder


def convert(folder, shards, **options):
    source = write_edm2_scm(folder, **options)
    main(["convert", f"--source={source}", f"--out={folder / 'run'}", f"--data={shards}"])
    return folder / "run"


def test_a_student_draws_what_its_formulas_say(tmp_path, shards, capsys):
    """One step from its own noise; then its export, and a run that begins with it."""
    run = convert(tmp_path, shards, loss="TrigFlowSCMLoss", dtype=torch.float32)
    said = capsys.readouterr()
    assert "a consistency run with the network of phema-0002048-0.114.pkl" in said.out + said.err
    assert "CC BY-NC-SA 4.0" in said.out + said.err
    config = f"--config={run / 'config.yaml'}"
    main(["predict", config, *QUIET, "--data.init_args.num_predict_samples=6"])
    with np.load(run / "samples" / "samples.npz") as file:
        noise, labels, drawn = (torch.tensor(file[name]) for name in ("noise", "labels", "1_step"))
    x_t = noise.double()
    t = torch.full((6,), math.atan(80 / SIGMA_DATA), dtype=torch.float64)
    p = {name: each.double() for name, each in trained(Source(is_scm=True)).items()}
    F = Source(is_scm=True).F(p, x_t / SIGMA_DATA, t, labels)
    x0 = t[0].cos() * x_t - t[0].sin() * SIGMA_DATA * F
    torch.testing.assert_close(drawn.double(), x0, rtol=0, atol=2e-5)

    weights = run / "network.safetensors"
    main(["export", f"--checkpoint={run}", f"--out={weights}"])
    exported = Export.read(weights)
    assert (exported.module, exported.sigma_data) == ("consistency", SIGMA_DATA)
    begun = tmp_path / "begun"
    main(
        [
            "fit",
            config,
            *QUIET,
            f"--model.init_args.init={run / 'checkpoints' / 'last.ckpt'}",
            f"--trainer.default_root_dir={begun}",
            "--trainer.max_steps=1",
            "--data.init_args.batch_size=4",
            "--trainer.limit_val_batches=0",
            "--model.init_args.ema.class_path=scm_lightning.modules.PowerFunction",
        ]
    )
    assert "100.0% of the numbers" in capsys.readouterr().out
    assert SavedRun.read(begun / "checkpoints" / "last.ckpt").content["global_step"] == 1
    with pytest.raises(SystemExit):
        main(["fit", config, *QUIET, "--trainer.max_steps=1"])
    assert "which `scm convert` wrote" in capsys.readouterr().err


def test_a_teacher_is_a_diffusion_run(tmp_path, shards):
    run = convert(tmp_path, shards)
    saved = SavedRun.read(run / "checkpoints" / "last.ckpt")
    assert saved.metadata["module"] == "diffusion"
    source = Source(is_scm=True)
    file = write_edm2_scm(tmp_path)
    network = EDM2SCMFile.read(str(file)).network
    teacher = load_teacher(run / "checkpoints" / "last.ckpt", network, TrigFlow(SIGMA_DATA))
    u, t = torch.randn(6, *SHAPE), torch.linspace(0.1, 1.5, 6)
    labels = torch.arange(6) % NUM_CLASSES
    expected = source.F(trained(source), u, t, labels)
    torch.testing.assert_close(teacher(u, t, labels), expected, rtol=0, atol=0.02)  # half weights


REFUSED = {
    "segments": (
        lambda folder: write_edm2_scm(
            folder,
            loss="TrigFlowMSSCDLoss",
            has_segments=True,
            tensors=Source(is_scm=True, has_segments=True).random(),
        ),
        "is a multistep student",
    ),
    "unknown": (
        lambda folder: write_edm2_scm(folder, loss="Another"),
        "does not say whether it is a teacher or a student; give --module",
    ),
    "mscd": (write_edm2, "the files mscd_* are students of another method"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_other_files_are_refused(tmp_path, capsys, make, message):
    with pytest.raises(SystemExit) as caught:
        main(["convert", f"--source={make(tmp_path)}", f"--out={tmp_path / 'run'}"])
    line = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in line
    assert line.count("\n") == 1
    assert not (tmp_path / "run").exists()
