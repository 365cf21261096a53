# SPDX-License-Identifier: Apache-2.0
"""The README, run: its commands parse, its targets and links exist, its code trains."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from gaussian import PATH
from tiny import loader, trainer

from scm_lightning.cli import main
from scm_lightning.networks import MLP
from scm_lightning.objectives import TeacherVelocity

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(program: str) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in "\n".join(blocks("bash")).split("\n")]
    return [line for line in lines if line.split(" ")[0] == program]


@pytest.mark.parametrize("line", commands("scm"))
def test_commands_are_understood(line, monkeypatch, capsys):
    """Every `scm` line, up to the point where work would begin."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)[1:]
    if words[0].startswith("-"):
        main(words)
        return
    # No model in their arguments to print.
    if words[0] in ("ablate", "export", "prepare", "reconstruct"):
        with pytest.raises(SystemExit) as caught:
            main([words[0], "--help"])
        assert caught.value.code == 0
        described = capsys.readouterr().out
        assert all(word in described for word in words if word.startswith("--"))
        assert all(Path(word).is_file() for word in words if word.endswith(".yaml"))
        return
    with pytest.raises(SystemExit) as caught:
        main([*words, "--print_config"])
    assert caught.value.code == 0
    assert "class_path: scm_lightning" in capsys.readouterr().out


def test_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for line in commands("make")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_ci_calls_the_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def as_module(code: str, name: str, folder: Path):
    """A README block as a file of another project."""
    file = folder / f"{name}.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_library_example_trains_and_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    used = as_module(blocks("python")[0], "readme_library", tmp_path)
    assert used.samples.shape == (16, 2)
    assert bool(torch.isfinite(used.samples).all())


def test_subclass_example_trains(tmp_path):
    """Own velocity and own optimizer, in another file: the student moves, its head too."""
    Blend = as_module(blocks("python")[1], "readme_subclass", tmp_path).Blend
    teacher = MLP((3,), 16, 1, 8)
    torch.nn.init.normal_(teacher.output.weight)
    module = Blend(MLP((3,), 16, 1, 8), TeacherVelocity(), teacher, path=PATH)
    before = [parameter.detach().clone() for parameter in module.student.parameters()]
    trainer(5).fit(module, loader())
    assert isinstance(module.optimizers().optimizer, torch.optim.AdamW)
    changed = zip(before, module.student.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in changed)
    x0, z, t = torch.randn(5, 3), torch.randn(5, 3), torch.rand(5)
    x_t = t[:, None].cos() * x0 + t[:, None].sin() * z
    pair = PATH.velocity(x0, z, t)
    taught = PATH.sigma_data * teacher(x_t / PATH.sigma_data, t)
    found = module.velocity(x_t, t, x0, z, None, None)
    torch.testing.assert_close(found, (pair + taught) / 2)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_tree_names_every_room_and_folder():
    for folder in [*(ROOT / "scm_lightning").iterdir(), *ROOT.iterdir()]:
        if folder.is_dir() and folder.name[0] not in "._" and "egg-info" not in folder.name:
            assert f"{folder.name}/" in README or folder.name in {"runs", "build"}, folder.name


def test_results_are_those_measured():
    """The table's medians are the medians of the committed scores of three seeds."""
    results = json.loads((ROOT / "configs" / "results" / "digits.json").read_text())
    labels = {"scd": "sCD", "sct": "sCT", "sct_scratch": "sCT from random weights"}
    for name, label in labels.items():
        for row, text in (("1_step", "1 step"), ("2_step", "2 steps")):
            values = sorted(run[f"fd/{row}"] for run in results[name].values())
            assert f"| {label}, {text} |" in README
            (line,) = re.findall(rf"^\| {label}, {text} \|.*$", README, flags=re.MULTILINE)
            assert f"**{values[1]:.3f}**" in line
