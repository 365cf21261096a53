# SPDX-License-Identifier: Apache-2.0
"""`scm export --format diffusers` of real runs, drawn from in processes of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from cli import digits_runs
from export import fake_hub
from huggingface_hub import constants

from scm_lightning.cli import main

ROOT = Path(__file__).parents[2]
DIFFUSERS = ["--format=diffusers"]
STUDENT = "model.init_args.student"
WITHOUT_US = f"""
import runpy, sys
runpy.run_path({str(ROOT / "scm_lightning" / "torchvision_guard.py")!r})  # see there
sys.modules["scm_lightning"] = None  # which makes its import an error
"""
DRAW = """
import numpy as np
for steps in (1, 2):
    noise = [torch.Generator().manual_seed(number) for number in range(20)]
    drawn = pipeline(20, num_inference_steps=steps, generator=noise, output_type="latent").images
    np.save(f"{steps}_step.npy", drawn.numpy())
"""
UNET2D = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8],
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "num_class_embeds": 10,
}


def fit(folder, config, **options):
    """Train a student of digits for a few steps and draw its samples."""
    fixed = {
        "trainer.default_root_dir": folder,
        "data.init_args.root": folder.parent / "shards",
        "data.init_args.num_val_samples": 20,
        "data.init_args.num_predict_samples": 20,
        "trainer.max_steps": 3,
        "trainer.val_check_interval": 3,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
    }
    given = [f"--{name}={value}" for name, value in {**fixed, **options}.items()]
    main(["fit", f"--config={ROOT / 'configs' / config}", *given])
    main(["predict", f"--config={folder / 'config.yaml'}"])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run of diffusers' UNet2DModel, and of a guided one of ours, with its teacher."""
    root = tmp_path_factory.mktemp("runs")
    unet = {"class_path": "diffusers.UNet2DModel", "init_args": UNET2D}
    network = {
        "class_path": "scm_lightning.networks.DiffusersNetwork",
        "init_args": {"model": unet},
    }
    of_diffusers = {STUDENT: json.dumps(network)}
    fit(root / "unet2d", "digits_sct_scratch.yaml", **of_diffusers)
    digits_runs.fit(root / "teacher", 3, **{"model.init_args.condition_dropout": 0.1})
    small = {f"{STUDENT}.init_args.{name}": 1 for name in ("num_blocks", "guided")}
    small |= {f"{STUDENT}.init_args.model_channels": 16, f"{STUDENT}.init_args.guided": "true"}
    small["model.init_args.guidance"] = "{low: 1.0, high: 2.0}"
    small["model.init_args.sampling.guidance"] = 1.7
    small["model.init_args.sampling.teacher.num_steps"] = 2
    small["model.init_args.teacher"] = root / "teacher/checkpoints/last.ckpt"
    fit(root / "guided", "digits_scd.yaml", **small)
    return root


def usage(folder):
    """The blocks of lines that the card shows."""
    return blocks((folder / "README.md").read_text())


def blocks(card):
    return re.findall(r"```python\n(.*?)```", card, re.S)


def fresh(place, code):
    """Run lines in a process of its own, in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "HF_HOME": str(place / "cache"), "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done


def assert_as_predicted(place, run):
    predicted = np.load(run / "samples" / "samples.npz")
    for name in ("1_step", "2_step"):
        drawn, own = np.load(place / f"{name}.npy"), predicted[name]
        assert drawn.shape == own.shape == (20, 1, 8, 8)
        np.testing.assert_allclose(drawn, own, rtol=0, atol=1e-5)


def test_a_fresh_process_without_this_package_draws_what_predict_draws(runs, tmp_path, capsys):
    """A model of diffusers' own: the card's lines, with `scm_lightning` impossible to import."""
    main(["export", f"--checkpoint={runs / 'unet2d'}", f"--out={tmp_path / 'made'}", *DIFFUSERS])
    said = capsys.readouterr().out
    assert "trust_remote_code=True" in said
    fresh(tmp_path, WITHOUT_US + usage(tmp_path / "made")[0] + DRAW)
    assert_as_predicted(tmp_path, runs / "unet2d")
    assert (tmp_path / "sample.png").is_file()
    assert not json.loads((tmp_path / "made/model_index.json").read_text())["network"][0].count(
        "scm"
    )


def test_a_fresh_process_with_it_draws_what_predict_draws(runs, tmp_path, capsys):
    """A guided network of ours: both blocks of the card, loaded with and without the flag."""
    file = tmp_path / "student.safetensors"
    main(["export", f"--checkpoint={runs / 'guided'}", f"--out={file}"])
    main(["export", f"--checkpoint={file}", f"--out={tmp_path / 'made'}", *DIFFUSERS])
    capsys.readouterr()
    first, second = usage(tmp_path / "made")
    guard = WITHOUT_US.replace('sys.modules["scm_lightning"] = None', "")
    check = "\nassert type(pipeline).__module__ == 'scm_lightning.export.pipeline'\n"
    fresh(tmp_path, guard + first + DRAW + second + check)
    assert_as_predicted(tmp_path, runs / "guided")


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(["export", *arguments, *DIFFUSERS])
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("scm: error: ")
    assert line.count("\n") == 1
    return line


def test_bad_input_is_one_line(runs, tmp_path, capsys):
    run, out = f"--checkpoint={runs / 'guided'}", f"--out={tmp_path / 'made'}"
    assert "there is no checkpoint" in refused(capsys, f"--checkpoint={tmp_path / 'none'}", out)
    assert "needs a solver" in refused(capsys, f"--checkpoint={runs / 'teacher'}", out)
    assert "is there already" in refused(capsys, run, f"--out={tmp_path}")
    is_mine = refused(capsys, run, f"--out={tmp_path}", "--overwrite")
    assert "is no folder of diffusers" in is_mine
    assert not (tmp_path / "made").exists()


def test_both_formats_are_uploaded_with_their_cards(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    run = f"--checkpoint={runs / 'unet2d'}"
    with fake_hub.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        main(["export", run, f"--out={tmp_path / 'a'}", *DIFFUSERS, "--push_to_hub=me/folder"])
        main(["export", run, f"--out={tmp_path / 'b.safetensors'}", "--push_to_hub=me/file"])
        again = refused(capsys, run, f"--out={tmp_path / 'c'}", "--push_to_hub=me/folder")
    assert "me/folder is there already" in again
    assert (tmp_path / "c" / "model_index.json").is_file()
    names = {repository: set() for repository, _ in hub.files}
    for repository, name in hub.files:
        names[repository].add(name)
    folder = {str(each.relative_to(tmp_path / "a")) for each in (tmp_path / "a").rglob("*.*")}
    assert names == {
        "me/folder": folder,
        "me/file": {"README.md", "samples.png", "b.safetensors"},
    }
    for (repository, name), content in hub.files.items():
        if name == "README.md":
            assert f"{repository!r}" in content.decode()
    assert hub.files["me/file", "b.safetensors"] == (tmp_path / "b.safetensors").read_bytes()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: tmp_path / file)
    monkeypatch.chdir(tmp_path)
    (lines,) = blocks(hub.files["me/file", "README.md"].decode())
    exec(lines, {})
    assert (tmp_path / "sample.png").is_file()


def test_without_a_token_nothing_is_begun(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    run, out = f"--checkpoint={runs / 'guided'}", f"--out={tmp_path / 'made'}"
    assert "needs a token of the hub" in refused(capsys, run, out, "--push_to_hub=me/folder")
    assert not (tmp_path / "made").exists()
