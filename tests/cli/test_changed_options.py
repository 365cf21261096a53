# SPDX-License-Identifier: Apache-2.0
"""Runs that are moved and go on with changed options: table, kept file and run say the same.

What a run uses is read off its objects in every step, and compared with the value that was typed;
rates with those of a schedule that was stepped from the first step on.
"""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn, optim

from scm_lightning.cli import main
from scm_lightning.modules import FlatCosine, InverseSqrt
from scm_lightning.modules.base import GenerativeModule

CONFIG = Path(__file__).parents[1] / "data" / "run_0.3.0" / "digits.yaml"
BEGUN, MORE = 4, 3
MODEL, OPTIMIZER = "model.init_args", "model.init_args.optimizer.init_args"
OBJECTIVE = f"{MODEL}.objective.init_args"
SCHEDULE = f"{MODEL}.lr_schedule"
OPTIMIZERS = {f"torch.optim.{each.__name__}": each for each in (optim.RAdam, optim.Adam, optim.SGD)}
SCHEDULES = {f"scm_lightning.modules.{each.__name__}": each for each in (FlatCosine, InverseSqrt)}
CHANGES = {
    f"{OPTIMIZER}.lr": ["5e-3", "1e-4"],
    f"{OPTIMIZER}.betas": ["[0.8, 0.95]"],
    f"{OPTIMIZER}.eps": ["1e-6"],
    f"{OPTIMIZER}.weight_decay": ["0.1"],
    f"{MODEL}.optimizer": ["torch.optim.Adam", "torch.optim.SGD"],
    f"{OBJECTIVE}.weighting_lr": ["3e-2", "null"],
    f"{SCHEDULE}.init_args.total_steps": ["13", "400"],
    f"{SCHEDULE}.init_args.ramp_steps": ["0", "10"],
    f"{SCHEDULE}.init_args.flat_share": ["0.0"],
    SCHEDULE: ["null", "InverseSqrt"],
    f"{MODEL}.ema.init_args.images": ["500"],
    f"{MODEL}.student.init_args.dropout": ["0.0", "0.3"],
    f"{OBJECTIVE}.times.P_mean": ["-0.7"],
    f"{OBJECTIVE}.warmup.steps": ["0", "500"],
    f"{OBJECTIVE}.bound.kind": ["rms"],
    f"{MODEL}.sampling.intermediate_times": ["[0.9, 0.4]"],
    "data.init_args.batch_size": ["6", "16"],
    "data.init_args.shuffle_seed": ["3"],
    "trainer.gradient_clip_val": ["0.5"],
    "trainer.accumulate_grad_batches": ["2"],
    "trainer.val_check_interval": ["7"],
    "trainer.log_every_n_steps": ["1"],
    "checkpoints.every_n_train_steps": ["2"],
    "bad_numbers.max_in_a_row": ["3"],
}
USED = {
    f"{MODEL}.ema.init_args.images": lambda t, m: m.ema.profile.images,
    f"{MODEL}.student.init_args.dropout": lambda t, m: next(
        (each.p for each in m.student.modules() if isinstance(each, nn.Dropout)), 0.0
    ),
    f"{OBJECTIVE}.times.P_mean": lambda t, m: m.objective.times.P_mean,
    f"{OBJECTIVE}.warmup.steps": lambda t, m: m.objective.warmup.steps,
    f"{OBJECTIVE}.bound.kind": lambda t, m: m.objective.bound.kind,
    f"{MODEL}.sampling.intermediate_times": lambda t, m: list(m.sampling.intermediate_times),
    "data.init_args.batch_size": lambda t, m: t.train_dataloader.batch_size,
    "data.init_args.shuffle_seed": lambda t, m: t.train_dataloader.batches.seed,
    "trainer.gradient_clip_val": lambda t, m: t.gradient_clip_val,
    "trainer.accumulate_grad_batches": lambda t, m: t.accumulate_grad_batches,
    "trainer.val_check_interval": lambda t, m: t.val_check_batch,
    "trainer.log_every_n_steps": lambda t, m: t.log_every_n_steps,
    "checkpoints.every_n_train_steps": lambda t, m: named(t, "Checkpoints").every_n_train_steps,
    "bad_numbers.max_in_a_row": lambda t, m: named(t, "BadNumbers").max_in_a_row,
}


def named(trainer, name):
    return next(each for each in trainer.callbacks if type(each).__name__ == name)


@pytest.fixture
def seen(monkeypatch):
    """Of every batch that is trained on: step, groups of the optimizer, and what `USED` reads."""
    found = []

    def on_train_batch_start(module, batch, batch_idx):
        groups = [
            {name: x for name, x in group.items() if name != "params"}
            for group in module.trainer.optimizers[0].param_groups
        ]
        used = {key: read(module.trainer, module) for key, read in USED.items()}
        kind = type(module.trainer.optimizers[0])
        found.append((module.trainer.global_step, kind, groups, used, len(batch.x0)))
        return original(module, batch, batch_idx)

    original = GenerativeModule.on_train_batch_start
    monkeypatch.setattr(GenerativeModule, "on_train_batch_start", on_train_batch_start)
    return found


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of some steps, `p1` of a folder."""
    place = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        shutil.copytree(CONFIG.parent / "shards", "shards")
        main(["fit", f"--config={CONFIG}", "--trainer.default_root_dir=p1", *steps(BEGUN)])
    return place


def steps(number):
    return [f"--trainer.max_steps={number}"]


def elsewhere(draw, place):
    """Move the run somehow; the folder that it is in now, and the words that begin its command."""
    how = draw.choice(["here", "moved", "copied", "given", "inside", "home"])
    folder = place / ("p1" if how in ("here", "inside") else f"runs/{how}")
    folder.parent.mkdir(exist_ok=True)
    if how in ("moved", "given", "home"):
        shutil.move("p1", folder)
    elif how == "copied":
        shutil.copytree("p1", folder)
    config, root = folder / "config.yaml", []
    if how == "given":
        config, root = CONFIG, [f"--trainer.default_root_dir={folder.relative_to(place)}"]
    elif how == "inside":
        os.chdir(folder)
        config = "config.yaml"
    elif how == "home":
        config, root = CONFIG, ["--trainer.default_root_dir=~/runs/home"]
    return folder, ["fit", f"--config={config}", *root]


def drawn_changes(draw):
    """Some options with other values; of those that exclude each other, one."""
    changes = {}
    for key in draw.sample(list(CHANGES), draw.randint(1, 4)):
        if not any(key.startswith(other) or other.startswith(key) for other in changes):
            changes[key] = draw.choice(CHANGES[key])
    if changes.get(f"{MODEL}.optimizer") is not None:
        changes = {key: x for key, x in changes.items() if not key.startswith(f"{OPTIMIZER}.")}
        changes[f"{OPTIMIZER}.lr"] = "2e-3"  # the options of the other class fall away
    if changes.get(SCHEDULE) == "InverseSqrt":
        changes |= {f"{SCHEDULE}.init_args.ref_steps": "2", f"{SCHEDULE}.init_args.ramp_steps": "3"}
    return changes


def value(config, key):
    """Value of a dotted key of a kept configuration."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def rates(config, name, number):
    """Rates of a group of the optimizer, by step, of a run that always had these options."""
    given = value(config, f"{MODEL}.optimizer")
    weighting_lr = value(config, f"{OBJECTIVE}.weighting_lr")
    options = dict(given["init_args"])
    if name == "head" and weighting_lr is not None:
        options["lr"] = weighting_lr
    made = OPTIMIZERS[given["class_path"]]([nn.Parameter(torch.zeros(2))], **options)
    schedule = value(config, SCHEDULE)
    if schedule is not None:
        schedule = SCHEDULES[schedule["class_path"]](made, **schedule["init_args"])
    found = []
    for _ in range(number):
        found.append(made.param_groups[0]["lr"])
        made.step()
        if schedule is not None:
            schedule.step()
    return found


def go_on(seed, begun, place, monkeypatch, capsys, seen):
    """One run, moved and changed; every assertion names its seed."""
    draw = random.Random(seed)
    seen.clear()
    shutil.copytree(begun, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("COLUMNS", "400")
    folder, words = elsewhere(draw, place)
    data = f"--data.init_args.root={place / 'shards'}"
    before = yaml.safe_load((folder / "config.yaml").read_text())
    changes = drawn_changes(draw)
    capsys.readouterr()
    main([*words, data, *steps(BEGUN + MORE), *(f"--{key}={x}" for key, x in changes.items())])
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    what = f"seed {seed}: {' '.join(words)} {changes}"

    assert [step for step, *_ in seen][:: kept["trainer"]["accumulate_grad_batches"]] == list(
        range(BEGUN, BEGUN + MORE)
    ), what
    for key, text in changes.items():
        is_class = key in (f"{MODEL}.optimizer", SCHEDULE) and text != "null"
        typed = yaml.safe_load(text) if not is_class else None
        found = value(kept, f"{key}.class_path" if is_class else key)
        if is_class:
            assert found.endswith(text.rpartition(".")[2]), what
            key = f"{key}.class_path"
        else:
            assert found == pytest.approx(float(typed)) if "e-" in text else found == typed, what
        if value(before, key) != found:
            row = f"│ {key} │ {value(before, key)} │ {found} │"
            if value(before, key) is None and key.endswith(("ref_steps", "ramp_steps")):
                row = f"│ {key} │ - │ {found} │"
            if isinstance(value(before, key), dict):
                row = f"│ {key} │ {{"
            assert any(line.startswith(row) for line in printed), f"{what}\n{row}\n{printed}"
    for step, kind, groups, used, batch_size in seen:
        for key, found in used.items():
            assert found == value(kept, key), f"{what}: {key} in step {step}"
        assert batch_size == value(kept, "data.init_args.batch_size"), what
        given = value(kept, f"{MODEL}.optimizer")
        assert kind is OPTIMIZERS[given["class_path"]], what
        for group, name in zip(groups, ("student", "head"), strict=True):
            assert group["lr"] == rates(kept, name, step + 1)[step], f"{what}: lr in step {step}"
            for option, x in given["init_args"].items():
                x = tuple(x) if isinstance(x, list) else x
                own = tuple(group[option]) if isinstance(x, tuple) else group[option]
                assert own == x or option == "lr", f"{what}: {option} in step {step}"


@pytest.mark.parametrize("seed", range(6))
def test_changed_options_and_moved_folders(seed, begun, tmp_path, monkeypatch, capsys, seen):
    go_on(seed, begun, tmp_path / "place", monkeypatch, capsys, seen)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_resumes(begun, tmp_path, monkeypatch, capsys, seen):
    for seed in range(100, 300):
        go_on(seed, begun, tmp_path / str(seed), monkeypatch, capsys, seen)
