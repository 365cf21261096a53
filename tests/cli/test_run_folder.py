# SPDX-License-Identifier: Apache-2.0
"""A run lives in its folder: its configuration holds what was given, and follows the folder."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from digits_runs import CONFIG, NETWORK, fit

from scm_lightning.cli import main

FIXTURE = Path(__file__).parents[1] / "data" / "run_0.3.0"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of three steps, in a folder that was named relative to the working folder."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        fit(Path("p1"), 3, shards=place / "shards")
    return place


@pytest.fixture
def place(begun, tmp_path, monkeypatch):
    """A copy of it, as the working folder."""
    shutil.copytree(begun, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def files(folder):
    """Hash of every file of a run."""
    return {
        str(each.relative_to(folder)): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in folder.rglob("*")
        if each.is_file()
    }


def step_of(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def saved(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_a_kept_configuration_trains_elsewhere(place):
    """It holds nothing that was derived: all files are in the folder that is given."""
    config = saved(place / "p1")
    assert config["checkpoints"]["dirpath"] is None
    assert config["trainer"]["logger"] is None
    assert config["trainer"]["callbacks"] is None
    before = files(place / "p1")
    root = ["--trainer.default_root_dir", "p2", "--trainer.max_steps", "2"]
    main(["fit", "--config", "p1/config.yaml", *root])
    assert files(place / "p1") == before
    assert {"checkpoints", "config.yaml", "metrics.csv"} <= {e.name for e in Path("p2").iterdir()}
    assert step_of(place / "p2") == 2


def test_a_default_that_yaml_cannot_say_is_left_out(tmp_path, monkeypatch, capsys):
    """Such as a student's optimizer: the kept configuration is read, and nothing differs."""
    shutil.copytree(FIXTURE, tmp_path / "old", symlinks=True)
    monkeypatch.chdir(tmp_path / "old")
    config = yaml.safe_load(Path("digits.yaml").read_text())
    del config["model"]["init_args"]["optimizer"]
    Path("own.yaml").write_text(yaml.safe_dump(config))
    root = ["--trainer.default_root_dir", "p2", "--trainer.max_steps", "2"]
    main(["fit", "--config", "own.yaml", *root])
    assert "optimizer" not in saved(Path("p2"))["model"]["init_args"]
    main(["fit", "--config", "p2/config.yaml"])
    printed = capsys.readouterr()
    assert "already at step 2 of 2" in " ".join(printed.out.split())
    assert "serialize" not in printed.out + printed.err


def test_a_configuration_of_version_0_3_0_trains_elsewhere(tmp_path, monkeypatch):
    """It holds what that version derived, which is told by its value."""
    shutil.copytree(FIXTURE, tmp_path / "old", symlinks=True)
    monkeypatch.chdir(tmp_path / "old")
    before = files(Path("one_file"))
    root = ["--trainer.default_root_dir", "p2", "--trainer.max_steps", "2"]
    main(["fit", "--config", "one_file/config.yaml", *root])
    assert files(Path("one_file")) == before
    assert {"checkpoints", "config.yaml", "metrics.csv"} <= {e.name for e in Path("p2").iterdir()}


@pytest.mark.parametrize("how", ["moved", "copied", "from another folder"])
def test_a_run_goes_on_where_its_folder_is(place, how, monkeypatch, capsys):
    if how == "from another folder":
        monkeypatch.chdir(place / "p1")
        config, folder = "config.yaml", place / "p1"
    else:
        {"moved": shutil.move, "copied": shutil.copytree}[how]("p1", "p3")
        config, folder = "p3/config.yaml", place / "p3"
    before = files(place / "p1") if how == "copied" else {}
    main(["fit", "--config", config, "--trainer.max_steps", "4"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "is the configuration of the run in its folder, which was p1" in printed
    assert "last.ckpt, step 3" in printed
    assert step_of(folder) == 4
    assert sorted(each.name for each in place.iterdir() if each.name.startswith("p")) == sorted(
        {folder.name} | ({"p1"} if how == "copied" else set())
    )
    if before:
        assert files(place / "p1") == before
    main(["predict", "--config", config, "--data.init_args.num_predict_samples", "3"])
    assert (folder / "samples" / "samples.npz").is_file()


def test_a_tilde_is_the_home_everywhere(place, monkeypatch):
    """Files stay together; the kept configuration says it as it was typed."""
    monkeypatch.setenv("HOME", str(place))
    fit("~/runs/p4", 2, shards="~/shards")
    assert not Path("~").exists()
    assert {e.name for e in (place / "runs" / "p4").iterdir()} >= {"checkpoints", "metrics.csv"}
    assert saved(place / "runs" / "p4")["trainer"]["default_root_dir"] == "~/runs/p4"
    fit("~/runs/p4", 3, shards="~/shards")
    assert step_of(place / "runs" / "p4") == 3
    checkpoint = ["--ckpt_path", "~/runs/p4/checkpoints/last.ckpt"]
    few = ["--data.init_args.num_predict_samples", "3"]
    main(["predict", "--config", str(place / "runs/p4/config.yaml"), *checkpoint, *few])


@pytest.mark.parametrize(
    "option", ["trainer.default_root_dir", "checkpoints.dirpath", "data.init_args.root"]
)
def test_a_variable_that_no_shell_has_replaced(place, option, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(CONFIG), f"--{option}=$HOME/runs"])
    assert caught.value.code == 2
    assert "must not hold the variable $HOME" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "zeros", "latin", "folder", "list"])
def test_a_kept_configuration_that_cannot_be_read(place, damage, capsys):
    """Is moved away with a line, and the run goes on."""
    file = place / "p1" / "config.yaml"
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes(
            {
                "cut": content[:300] + b"\n  x: [",
                "zeros": bytes(100),
                "latin": b"a: \xe9",
                "list": b"- 1\n",
            }[damage]
        )
    fit(place / "p1", 4, shards=place / "shards")
    assert step_of(place / "p1") == 4
    assert saved(place / "p1")["trainer"]["max_steps"] == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "scm: changed options cannot be shown, since" in said
    (aside,) = (place / "p1").glob("config*.old-1*")
    assert f"config.yaml is now {aside}" in said


def test_options_that_are_changed_are_shown_used_and_kept(place, capsys, monkeypatch):
    """The rate by the table, the file and the optimizer; a schedule at its position."""
    monkeypatch.setenv("COLUMNS", "200")
    key = "model.init_args.optimizer.init_args.lr"
    fit(Path("p1"), 5, shards=place / "shards", **{key: 5e-3})
    assert f"{key} │ 0.002 │ 0.005" in " ".join(capsys.readouterr().out.split())
    assert saved(place / "p1")["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 5e-3
    content = torch.load(place / "p1" / "checkpoints" / "last.ckpt", weights_only=True)
    (group, *_) = content["optimizer_states"][0]["param_groups"]
    assert group["initial_lr"] == 5e-3
    schedule = saved(place / "p1")["model"]["init_args"]["lr_schedule"]["init_args"]
    assert schedule["ramp_steps"] == 4  # the fifth step is behind the ramp, and the stretch is flat
    assert group["lr"] == 5e-3
    with pytest.raises(SystemExit):
        fit(place / "p1", 6, shards=place / "shards", **{f"{NETWORK}.model_channels": 24})
    assert saved(place / "p1")["trainer"]["max_steps"] == 5
