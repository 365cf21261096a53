# SPDX-License-Identifier: Apache-2.0
"""What people type by mistake, and what the line must say: the nearest name, or a line that runs.

Nothing is built or trained: the parser alone refuses, in one process.
"""

import re
import shlex
from pathlib import Path

import malformed_place
import pytest
import yaml

from scm_lightning.cli import main
from scm_lightning.cli.completion import known_options
from scm_lightning.cli.screens import OF_MODELS

CONFIG = Path(__file__).parents[2] / "configs" / "digits_scd.yaml"
OVERLAY = CONFIG.parent / "overlays" / "debug.yaml"
FIT = "scm fit --config base.yaml"
TEACHER = "scm fit --config teacher.yaml"
STUDENT = "model.init_args.student"

COMMANDS = {
    "scm fit base.yaml": "did you mean: scm fit --config base.yaml",
    "scm fit base.yaml --trainer.max_steps 3": "scm fit --config base.yaml --trainer.max_steps 3",
    "scm test 'my runs/base.yaml'": "did you mean: scm test --config 'my runs/base.yaml'",
    "scm fit a.yaml b.yaml": "without; scm fit takes --config",
    "scm prepare images out": "did you mean: scm prepare --source images --out out",
    "scm prepare images": "did you mean: scm prepare --source images --out OUT",
    "scm export last.ckpt x.safetensors": "--checkpoint last.ckpt --out x.safetensors",
    "scm reconstruct run 0.1 x.ckpt": "--run run --sigma_rel 0.1 --out x.ckpt",
    "scm ablate base.yaml": "did you mean: scm ablate --config base.yaml",
    "scm train --config base.yaml": "did you mean: scm fit --config base.yaml",
    "scm fti --config base.yaml": "did you mean: scm fit --config base.yaml",
    "scm evaluate": "did you mean: scm test",
    "scm sample --config base.yaml": "did you mean: scm predict --config base.yaml",
    "scm --config base.yaml test": "did you mean: scm test --config base.yaml",
    "scm base.yaml": "did you mean: scm fit --config base.yaml",
    "scm help": "did you mean: scm --help",
    "scm help fit": "did you mean: scm fit --help",
    "scm --hlep": "did you mean: scm --help",
    "scm FIT --config base.yaml": "did you mean: scm fit --config base.yaml",
    f"{FIT} --checkpoints.every 5": "there are dirpath, every_n_train_steps",
    f"scm fit --config {OVERLAY}": "the configuration that names the class stands before",
    "scm nonsense": "there is no subcommand nonsense, only fit, validate, test",
    "scm completion powershell": "must be one of bash, zsh, fish, got powershell",
}
OPTIONS = {
    f"{FIT} --max_steps 5": "max_steps is no option; did you mean trainer.max_steps?",
    f"{FIT} --max-steps 5": "max_steps is no option; did you mean trainer.max_steps?",
    f"{FIT} --lr 1": "did you mean model.init_args.optimizer.init_args.lr?",
    f"{FIT} --batch_size 5": "did you mean data.init_args.batch_size?",
    f"{FIT} --trainer.max_step 5": "did you mean trainer.max_steps?",
    "scm fit --conifg base.yaml": "did you mean config?",
    f"{FIT} --zzz 5": "`scm fit --help-all` lists all of them",
    f"{FIT} --trainer.logger TensorBoardLogger": "trainer.logger.init_args.save_dir must be given",
    f"{FIT} --optimizer torch.optim.SGD": "each model has its own; set model.init_args.optimizer",
    f"{FIT} --data.init_args.reading.max_damaged 3": "since 0.4.0 a damaged sample ends the run",
    "scm prepare": "source and out must be given",
    "scm prepare --source a --out b --sise 3": "sise is no option; did you mean size?",
    "scm fit": "model must be given; add --config FILE",
    f"{FIT} --trainer.max_steps": "trainer.max_steps needs a value behind it",
}
CLASSES = {
    f"{FIT} --{STUDENT} UNett": "got UNett; did you mean UNet?",
    f"{FIT} --{STUDENT} scm_lightning.network.UNet": "did you mean UNet?",
    f"{FIT} --model ConsistencyModul": "did you mean ConsistencyModule?",
    f"{FIT} --data Shrads": "did you mean Shards?",
    f"{FIT} --model.init_args.objective MeanFlw": "did you mean MeanFlow?",
    f"{FIT} --model.init_args.optimizer Adamm": "did you mean Adam?",
    f"{FIT} --{STUDENT} no_such_module.UNett": "No module named 'no_such_module'",
    f"{TEACHER} --model.init_args.augmentation scm_lightning.data.Augmentation": (
        "it is scm_lightning.modules.Augmentation now"
    ),
    "scm fit --model.help UNett": "there is no class UNett; did you mean UNet?",
}
FILES = {
    "scm fit --config bse.yaml": "there is no file bse.yaml; did you mean base.yaml?",
    "scm fit --config nowhere.yaml": "there is no file nowhere.yaml",
    "scm fit --config run": "run is a folder; did you mean run/config.yaml?",
    "scm fit --config runs/config.yaml": "did you mean run/config.yaml?",
    "scm export --checkpoint run --out x.safetensors": "run/checkpoints/last.ckpt is not a check",
    "scm export --checkpoint run/checkpoints/lst.ckpt --out x.safetensors": "has last.ckpt",
    "scm prepare --source image --out out": "there is nothing at image; did you mean images",
    "scm ablate --config ablation.yaml --base bse.yaml": "bse.yaml: No such file or directory; did",
}
VALUES = {
    f"{FIT} --trainer.max_steps 1e3": "must be an int, got 1e3; write out all of its digits",
    f"{FIT} --trainer.precision fp16": "did you mean bf16?",
    "scm prepare --source a --out b --crop centre": "did you mean center?",
    f"{FIT} --model.init_args [1]": "model.init_args must be its options by name, {NAME: VALUE,",
    f"{FIT} --model.init_args null": "model.init_args must be its options by name, {NAME: VALUE,",
    f"{FIT} --config no_options.yaml": "data.init_args must be its options by name",
    f"{FIT} --model.init_args.sampling null": "sampling must be its options by name, {NAME: VALUE,",
    f"{FIT} --model.init_args.terms null": "model.init_args.terms must",
    f"{FIT} --fresh maybe": "fresh must be true or false, got maybe",
    f"{FIT} --trainer.enable_checkpointing false": "enable_checkpointing must stay true",
    f"{FIT} --trainer.devices -1": "trainer.devices must be the number of processes on a CPU, got",
    "scm ablate --config null_variant.yaml": "variants must be a map, each its options by name",
}

SCT = "scm fit --config sct.yaml"
OBJECTIVE = "model.init_args.objective"
BUILT = {
    f"{SCT} --{OBJECTIVE}.init_args.warmup.steps -3": f"{OBJECTIVE}.init_args.warmup: ",
    f"{SCT} --{STUDENT}.init_args.num_blocks -4": f"{STUDENT}: num_blocks must be at least 0, got",
    f"{SCT} --{STUDENT}.init_args.model_channels 0": f"{STUDENT}: model_channels must be at least",
    f"{SCT} --model.init_args.path.sigma_data 100": "sigma_data is the standard deviation of the",
}
"""Refused by the objects, under the key of their options."""


@pytest.fixture(scope="module", autouse=True)
def _one_parser():
    with malformed_place.parser_built_once():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "base.yaml").write_text(CONFIG.read_text())
    (folder / "teacher.yaml").write_text(CONFIG.with_stem("digits_teacher").read_text())
    (folder / "sct.yaml").write_text(CONFIG.with_stem("digits_sct_scratch").read_text())
    (folder / "no_options.yaml").write_text("data: {init_args: [1]}\n")
    (folder / "images").mkdir()
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "checkpoints" / "last.ckpt").write_bytes(b"")
    (folder / "run" / "config.yaml").write_text("")
    ablation = "{title: t, question: q, base: base.yaml, root: r, scores: [s], variants: {a: %s}}\n"
    (folder / "null_variant.yaml").write_text(ablation % "null")
    (folder / "ablation.yaml").write_text(ablation % "{}")
    return folder


@pytest.mark.parametrize(
    ("line", "said"), (COMMANDS | OPTIONS | CLASSES | FILES | VALUES | BUILT).items(), ids=str
)
def test_a_mistake_is_answered_with_what_was_meant(line, said, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(line)[1:])
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("scm: error: ")]
    assert caught.value.code == 2
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize("command", OF_MODELS)
def test_help_is_one_screen(command, capsys):
    """What one sets, without waiting for torch; all of it exists."""
    main([command, "--help"])
    screen = capsys.readouterr().out
    named = {name.replace("-", "_") for name in re.findall(r"--([\w.-]+)", screen)}
    assert named - {"KEY", "help_all", "model.help", "print_config"} <= known_options(command)
    lines = screen.splitlines()
    assert len(lines) <= 40
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    "key",
    [
        "model.init_args.objective.init_args.warmup.steps",
        "model.init_args.lr_schedule.init_args.ramp_steps",
        "model.init_args.lr_schedule",
        "model.init_args.teacher",
        "model.init_args.sampling.teacher.guidance",
        "data.init_args.reading.mapped",
    ],
)
def test_null_is_no_word(key, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(CONFIG), f"--{key}", "null", "--print_config"])
    assert caught.value.code == 0
    found = yaml.safe_load(capsys.readouterr().out)
    for name in key.split("."):
        found = found[name]
    assert found is None


def test_all_options_are_behind_help_all(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--help-all"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "--trainer.gradient_clip_val" in text
    assert "<class" not in text


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--model.help", "UNet"], "--channel_mult"),
        (["--model.help=UNet"], "--channel_mult"),
        ([f"--{STUDENT}.help", "UNet"], "--channel_mult"),
        (["--model.init_args.optimizer.help", "RAdam"], "--betas"),
        (["--data.help", "scm_lightning.data.Shards"], "--batch_size"),
        (["--trainer.callbacks.help"], "EMASnapshots"),
    ],
)
def test_help_of_a_class_by_its_short_name(words, option, capsys):
    main(["fit", *words])
    assert option in capsys.readouterr().out
