# SPDX-License-Identifier: Apache-2.0
"""The README, run: its commands parse, its targets and links exist, its code trains."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from gaussian import PATH
from tiny import loader, mlp, trainer, wake
from torch.utils.data import DataLoader

from scm_lightning import ConsistencyModule
from scm_lightning.cli import main
from scm_lightning.core import Guided
from scm_lightning.metrics import DigitFeatures, frechet_distance, statistics

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TEXTS = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in [
        *ROOT.glob("*.md"),
        *ROOT.glob("[a-z]*/README.md"),
        *ROOT.glob("*/[a-z]*/README.md"),
    ]
}
"""All that one reads, by place."""


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(program: str) -> list[str]:
    """Lines that call a program, each once."""
    code = "\n".join(block for text in TEXTS.values() for block in blocks("bash", text))
    lines = [line.partition("#")[0].strip() for line in code.split("\n")]
    return sorted({line for line in lines if line.split(" ")[0] == program})


def test_it_is_read_in_minutes():
    assert len(README) <= 10_000
    prose = re.sub(r"```.*?```|^[|!].*?$", "", README, flags=re.DOTALL | re.MULTILINE)
    assert max(map(len, prose.split("\n"))) <= 120


@pytest.mark.parametrize("line", commands("scm"))
def test_commands_are_understood(line, monkeypatch, capsys):
    """Every `scm` line, up to the point where work would begin."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)[1:]
    if words[0].startswith("-"):
        main(words)
        return
    # No model in their arguments to print.
    if words[0] in ("ablate", "convert", "export", "prepare", "reconstruct", "sample"):
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


def test_lines_by_words_are_those_of_the_configuration():
    """As they stand there, but for what is left out."""
    config = (ROOT / "configs" / "emoji32_words_teacher.yaml").read_text()
    (block,) = blocks("yaml", TEXTS["scm_lightning/README.md"])
    lines = [line.partition("#")[0].rstrip() for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        for part in line.split(" ... "):
            assert part.replace("prepared_by: ", "").strip() in config, part


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
    used = as_module(blocks("python", README)[0], "readme_library", tmp_path)
    assert used.samples.shape == (16, 2)
    assert bool(torch.isfinite(used.samples).all())


LIBRARY = TEXTS["scm_lightning/README.md"]
EXAMPLES = ("network", "condition", "velocity", "objective", "term", "subclass", "metric", "bound")
"""Its blocks, in their order."""


def example(name, folder):
    return as_module(blocks("python", LIBRARY)[EXAMPLES.index(name)], f"readme_{name}", folder)


def test_examples_are_short():
    """About ten lines each, without imports and blank lines."""
    for code in blocks("python", LIBRARY):
        lines = [line for line in code.splitlines() if line.strip()]
        assert sum(not line.startswith(("import", "from")) for line in lines) <= 11, code


def moved(module, **options):
    """Train for five steps; whether every weight of the student is another."""
    before = [parameter.detach().clone() for parameter in module.student.parameters()]
    trainer(5, **options).fit(module, loader())
    changed = zip(before, module.student.parameters(), strict=True)
    return all(not torch.equal(old, new) for old, new in changed)


def test_own_network(tmp_path):
    """Trained by the method that needs rules of its operations, checked before the first step."""
    module = ConsistencyModule(example("network", tmp_path).Net(), path=PATH)
    assert moved(module)
    assert module.objective.tangents.check


def test_own_condition(tmp_path):
    """It is trained by, and its gradient reaches every weight."""
    used = example("condition", tmp_path)
    module = ConsistencyModule(wake(used.Posed()), path=PATH)
    moved_pose = used.batch._replace(conditions={"pose": used.batch.conditions["pose"] + 1})
    t = torch.linspace(0.2, 1.4, 8)
    norms = []
    for batch in (used.batch, moved_pose):
        torch.manual_seed(0)
        norms.append(module.training_step(batch, 0, (t, None))["tangent_norm"])
    assert not torch.isclose(*norms).any()


def test_own_velocity(tmp_path, randn):
    velocity, teacher = example("velocity", tmp_path).Blend(), wake(mlp())
    assert moved(ConsistencyModule(wake(mlp(), 1), velocity, teacher, init=None, path=PATH))
    with pytest.raises(ValueError, match="Blend needs a teacher, got none"):
        trainer(1).fit(ConsistencyModule(mlp(), velocity, path=PATH), loader())
    x0, z, t = randn(5, 3).float(), randn(5, 3).float(), torch.rand(5)
    x_t = t[:, None].cos() * x0 + t[:, None].sin() * z
    taught = PATH.sigma_data * teacher(x_t / PATH.sigma_data, t)
    found = velocity(x_t, t, x0, z, PATH, Guided(teacher))
    torch.testing.assert_close(found, (PATH.velocity(x0, z, t) + taught) / 2)


def test_own_objective(tmp_path):
    """The pseudo-Huber distance of the unbounded tangent, by hand."""
    objective = example("objective", tmp_path).PseudoHuber(9)
    module = ConsistencyModule(wake(mlp()), objective=objective, path=PATH)
    assert moved(module)
    out = module.training_step(next(iter(loader())), 0)
    c = 0.00054 * 3**0.5
    expected = (out["tangent_norm"] ** 2 + c**2).sqrt() - c
    torch.testing.assert_close(out["sample_loss"], expected)


def test_own_term(tmp_path):
    """It is added to the loss, and logged."""
    term = example("term", tmp_path).Anchor()
    module = ConsistencyModule(wake(mlp()), path=PATH, terms=[term])
    assert moved(module)
    out = module.training_step(next(iter(loader())), 0)
    added = out["loss"] - out["sample_loss"].mean()
    torch.testing.assert_close(added, 0.01 * out["logs"]["train/anchor"].to(added.dtype))


def test_subclass(tmp_path):
    module = example("subclass", tmp_path).Mine(mlp(), path=PATH)
    run = trainer(5)
    run.fit(module, loader())
    assert isinstance(module.optimizers().optimizer, torch.optim.AdamW)
    assert 0 < float(run.callback_metrics["train/mean_t"]) < 1.6


def test_metric_in_somebody_elses_module(tmp_path):
    """The distance of two sets, over both batches of an epoch, and anew in the next."""

    class Reader(example("metric", tmp_path).Somebody):
        def sample(self, num):
            return torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(num))

    images = [torch.rand(size, 1, 8, 8) for size in (9, 7)]
    module = Reader()
    data = DataLoader(images, batch_size=None)
    values = [trainer(1).validate(module, data, verbose=False)[0]["fd"] for _ in range(2)]
    features = DigitFeatures()
    real, generated = (
        statistics(features(torch.cat(each)).features)
        for each in (images, [module.sample(9), module.sample(7)])
    )
    expected = frechet_distance(real, generated)
    assert values == pytest.approx([float(expected)] * 2, rel=1e-5)


def test_bound_conditions(tmp_path):
    assert example("bound", tmp_path).samples.shape == (16, 2)


@pytest.mark.parametrize("file", TEXTS)
def test_links_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[file]):
        if "://" not in target:
            assert (ROOT / file).parent.joinpath(target).exists(), target


def test_tree_names_every_room():
    for folder in (ROOT / "scm_lightning").iterdir():
        if folder.is_dir() and folder.name[0] != "_":
            assert f"\n{folder.name}/" in LIBRARY, folder.name
