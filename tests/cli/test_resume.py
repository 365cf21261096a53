# SPDX-License-Identifier: Apache-2.0
"""`scm fit`, called again: it goes on, stops where it is done, or is told to start anew."""

import csv
import os
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from digits_runs import CONFIG, NETWORK, fit

from scm_lightning.cli import main
from scm_lightning.cli.ablation import Run
from scm_lightning.cli.resume import differences


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of twelve steps."""
    folder = tmp_path_factory.mktemp("resume") / "unbroken"
    fit(folder, 12)
    return folder


@pytest.fixture
def run(unbroken, tmp_path):
    """A copy of it, which goes on with the same shards."""
    shutil.copytree(unbroken, tmp_path / "run")
    return lambda *args, **options: fit(
        tmp_path / "run", *args, shards=unbroken.parent / "shards", **options
    )


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def content(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def rows(folder, name="metrics.csv"):
    with (folder / name).open(newline="") as opened:
        return [row for row in csv.DictReader(opened) if row["train/loss"]]


def refused(capsys, call):
    with pytest.raises(SystemExit) as caught:
        call()
    assert caught.value.code == 2
    return " ".join(capsys.readouterr().err.split("scm: error: ")[-1].split())


def test_the_same_command_goes_on(unbroken, tmp_path, capsys):
    """Stopped at step 7, which is behind a file and a validation: bit for bit, log included."""
    folder, shards = tmp_path / "run", unbroken.parent / "shards"
    fit(folder, 7, shards=shards)
    fit(folder, 12, shards=shards)
    printed = said(capsys)
    assert "continuing from" in printed
    assert "checkpoints/last.ckpt, step 7" in printed
    assert "trainer.max_steps │ 7 │ 12" in printed
    found, expected = content(folder), content(unbroken)
    assert found["global_step"] == 12
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    assert torch.equal(found["random_states"][0]["torch"], expected["random_states"][0]["torch"])
    keys = ("step", "train/loss")
    assert [[row[k] for k in keys] for row in rows(folder)] == [
        [row[k] for k in keys] for row in rows(unbroken)
    ]


def test_a_finished_run_is_left_alone(run, tmp_path, capsys):
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    run(12)
    printed = said(capsys)
    assert "already at step 12 of 12" in printed
    assert "start anew with --fresh" in printed
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    assert not (tmp_path / "run" / "checkpoints.old-1").exists()


def test_a_finished_run_is_not_taken_for_another(run, capsys):
    """With other weights, or another seed, even if it is not finished: nothing would be trained."""
    line = refused(capsys, lambda: run(12, **{f"{NETWORK}.model_channels": 24}))
    assert f"is at step 12 of 12, trained with another {NETWORK}.model_channels" in line
    line = refused(capsys, lambda: run(20, seed_everything=5))
    assert "has seed_everything 0, got 5: continue with 0, or start anew with --fresh" in line


def test_differences_are_shown_whoever_has_the_option(tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text("model: {lr: 0.5, schedule: null, old: 1}\ntrainer: {max_steps: 3}\n")
    now = {"model": {"lr": 0.5, "schedule": {"class_path": "X"}, "new": 2}, "ckpt_path": "x"}
    found = differences(saved, yaml.safe_dump(now | {"trainer": {"max_steps": 4}}))
    expected = {
        "model.schedule": ("None", "{'class_path': 'X'}"),
        "trainer.max_steps": ("3", "4"),
        "model.old": ("1", "-"),
        "model.new": ("-", "2"),
    }
    assert found == expected
    assert differences(tmp_path / "none.yaml", "a: 1") == {}


def test_a_share_that_was_written_as_steps_is_no_change(tmp_path):
    """What versions before 0.5.0 kept, whose configurations counted steps."""
    saved = tmp_path / "config.yaml"
    saved.write_text("model: {warmup: {steps: 300}, ramp_steps: 50}\ntrainer: {max_steps: 300}\n")
    now = {"model": {"warmup": {"steps": None}, "ramp_steps": 0.2}, "trainer": {"max_steps": 300}}
    assert differences(saved, yaml.safe_dump(now)) == {"model.ramp_steps": ("50", "0.2")}
    assert "model.warmup.steps" in differences(saved, yaml.safe_dump(now | {"trainer": None}))


def test_runs_of_an_ablation_go_on_if_they_are_the_same(tmp_path):
    """One that was stopped goes on; with other options it starts anew."""
    options = {"trainer.max_steps": 3}
    one = Run("x", tmp_path, str(CONFIG), options, ("fit",), Path("checkpoints/last.ckpt"))
    other = replace(one, options={"trainer.max_steps": 4})
    assert not one.is_recorded(finished=False)
    one.record(finished=False)
    assert one.is_recorded(finished=False)
    assert not other.is_recorded(finished=False)
    assert not one.is_recorded(finished=True)
    product = tmp_path / one.product
    product.parent.mkdir()
    product.touch()
    assert not one.is_recorded(finished=True)
    one.record(finished=True)
    assert one.is_recorded(finished=True)
    product.unlink()
    assert not one.is_recorded(finished=True)
    assert one.is_recorded(finished=False)
    assert other.words("fit", fresh=True)[-1] == "--fresh"
    assert "--fresh" not in [*other.words("test", fresh=True), *one.words("fit")]


def test_a_model_that_does_not_fit_is_refused_by_its_weights(run, capsys):
    line = refused(capsys, lambda: run(20, **{f"{NETWORK}.model_channels": 24}))
    assert "the checkpoint does not fit the model" in line
    run(12)
    assert "already at step 12 of 12" in said(capsys)


def test_fresh_starts_anew_and_moves_the_old_run(run, unbroken, tmp_path, capsys):
    """Its configuration does not say so: the same folder goes on the next time."""
    run(3, "--fresh")
    folder = tmp_path / "run"
    assert content(folder)["global_step"] == 3
    aside = folder / "checkpoints.old-1"
    assert {each.name for each in aside.iterdir()} == {"0000005.ckpt", "0000010.ckpt", "last.ckpt"}
    assert [row["step"] for row in rows(folder)] == ["0", "1", "2"]
    assert rows(folder, "metrics.old-1.csv") == rows(unbroken)
    assert "later checkpoints in" in said(capsys)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["fresh"] is False
    assert saved["ckpt_path"] is None
    run(4, "--fresh=false")
    assert "step 3" in said(capsys)
    assert [each.name for each in folder.glob("checkpoints*")].count("checkpoints.old-2") == 0


def test_a_damaged_file_is_passed_over(run, tmp_path, capsys):
    """The one before is taken; with all of them damaged, nothing is trained."""
    folder = tmp_path / "run" / "checkpoints"
    damage(folder / "last.ckpt")
    run(14)
    printed = said(capsys)
    assert "last.ckpt is damaged: its content does not fit its checksum" in printed
    assert "0000010.ckpt, step 10" in printed
    assert content(tmp_path / "run")["global_step"] == 14
    for file in folder.glob("*.ckpt"):
        damage(file)
    line = refused(capsys, lambda: run(20))
    assert f"all checkpoints in {folder} are damaged" in line


def damage(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.unlink()
    file.write_bytes(data)


@pytest.mark.parametrize("stage", ["test", "predict", "validate"])
def test_a_damaged_file_is_not_sampled_from(stage, run, tmp_path, capsys):
    damage(tmp_path / "run" / "checkpoints" / "last.ckpt")
    config = tmp_path / "run" / "config.yaml"
    root = f"--trainer.default_root_dir={tmp_path / 'run'}"
    line = refused(capsys, lambda: main([stage, f"--config={config}", root]))
    assert "does not fit its checksum; give another one: 0000005.ckpt, 0000010.ckpt" in line


def test_a_named_file(run, tmp_path, capsys):
    """Is gone on from, later ones being moved; a missing one is refused with those there are."""
    folder = tmp_path / "run" / "checkpoints"
    line = refused(capsys, lambda: run(20, ckpt_path=folder / "0000006.ckpt"))
    assert "has 0000005.ckpt, 0000010.ckpt, last.ckpt" in line
    line = refused(capsys, lambda: run(20, "--fresh", ckpt_path=folder / "0000005.ckpt"))
    assert "give one of the two" in line
    run(6, ckpt_path=folder / "0000005.ckpt")
    assert sorted(each.name for each in folder.glob("*.ckpt")) == ["0000005.ckpt", "last.ckpt"]
    assert content(tmp_path / "run")["global_step"] == 6


def test_options_win_over_what_a_checkpoint_says(run, tmp_path):
    """Saved hyper-parameters would be those of the first part; Lightning lets them win."""
    file = tmp_path / "run" / "checkpoints" / "0000010.ckpt"
    saved = torch.load(file, weights_only=True)
    torch.save(saved | {"hyper_parameters": {"sampling": 3}}, tmp_path / "with.ckpt")
    run(14, ckpt_path=tmp_path / "with.ckpt", **{"model.init_args.sampling.num_steps": 2})
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["sampling"]["num_steps"] == 2


def test_a_checkpoint_for_samples_alone_is_refused_under_a_name_of_the_runs(run, tmp_path, capsys):
    file = tmp_path / "run" / "checkpoints" / "0000099.ckpt"
    saved = content(tmp_path / "run")
    saved["scm_lightning"]["reconstructed"] = {"sigma_rel": 0.1, "step": 12, "residual": 0.0}
    torch.save(saved | {"global_step": 99}, file)
    assert "which `scm reconstruct` wrote to sample from" in refused(capsys, lambda: run(100))


def test_last_is_a_word_for_the_newest(run, capsys):
    run(13, ckpt_path="last")
    assert "continuing from" in said(capsys)


def test_a_full_disk_is_one_line(run, tmp_path):
    """With the path, the bytes that are needed, and exit code 2; the run then goes on."""
    folder = tmp_path / "run" / "checkpoints"
    size = (folder / "last.ckpt").stat().st_size
    if (child := os.fork()) == 0:
        sys.stderr = (tmp_path / "errors").open("w")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        try:
            run(20)
        except SystemExit as stopped:
            sys.stderr.flush()
            os._exit(stopped.code)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    errors = [line for line in (tmp_path / "errors").read_text().splitlines() if "scm:" in line]
    assert len(errors) == 1
    assert (
        f"the checkpoint {folder / 'last.ckpt'} could not be written: File too large" in errors[0]
    )
    needed = int(errors[0].split("where ")[1].split(" bytes")[0].replace(",", ""))
    assert needed == pytest.approx(size, rel=0.02)
    names = sorted(each.name for each in folder.glob("*.ckpt"))
    assert names == ["0000005.ckpt", "0000010.ckpt", "last.ckpt"]
    run(14)
    assert content(tmp_path / "run")["global_step"] == 14
