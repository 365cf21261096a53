# SPDX-License-Identifier: Apache-2.0
"""`scm bench`: ratios that can be told by hand, and a run of a shipped benchmark."""

import json
from pathlib import Path

import pytest
import torch
from gaussian import PATH
from tiny import mlp
from torch import nn

from scm_lightning import ConsistencyModule
from scm_lightning.autodiff.methods import BY_NAME
from scm_lightning.bench import Cost, measure, training_steps
from scm_lightning.cli import bench, main
from scm_lightning.core import GuidanceProposal
from scm_lightning.data import Batch
from scm_lightning.objectives import Discrete, MeanFlow, PairVelocity, Segments, TeacherVelocity

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_costs_of_products_by_hand():
    """Twice the rows: twice the FLOPs, and the memory of the result."""
    x, w = torch.randn(64, 32), torch.randn(32, 128)
    double = torch.cat([x, x])
    costs = measure({"one": lambda: x @ w, "two": lambda: double @ w}, [], rounds=3)
    assert costs["one"].flops == 2 * 64 * 32 * 128
    assert costs["two"].relative_to(costs["one"]).flops == 2.0
    assert costs["one"].bytes == 64 * 128 * 4
    assert costs["two"].relative_to(costs["one"]).bytes == 2.0
    assert costs["one"].seconds > 0
    assert Cost(1.0, 2.0, 3.0).relative_to(Cost(2.0, 2.0, 0.0)) == (0.5, 1.0, 0.0)


def test_gradients_are_counted_as_held():
    """Parameters get a gradient before every call, so a step's memory is its own."""
    layer = nn.Linear(8, 8)
    measure({"step": lambda: layer(torch.ones(3, 8)).sum().backward()}, layer.parameters(), 1)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.full((8, 8), 3.0))


def test_a_benchmark_runs_and_dual_numbers_take_four_forwards(tmp_path, monkeypatch, capsys):
    """The shipped U-Net, narrowed; FLOPs do not depend on the machine.

    Attention's derivative costs more than a forward, so it is left out at 256 tokens.
    """
    monkeypatch.setattr(bench, "TOKENS", (16, 32))
    options = {
        "config": BENCHMARKS / "unet.yaml",
        "trainer.default_root_dir": tmp_path,
        "model.init_args.network.init_args.model_channels": 16,
        "model.init_args.network.init_args.num_blocks": 1,
        "model.init_args.network.init_args.attention_pixels": "[]",
        "data.init_args.batch_size": 2,
        "rounds": 1,
        "json": tmp_path / "numbers.json",
    }
    main(["bench", *(f"--{key}={value}" for key, value in options.items())])
    result = json.loads((tmp_path / "numbers.json").read_text())
    assert not (tmp_path / "bench.json").exists()
    plain = result["steps"]["diffusion"]["flops"]
    forwards = {name: 3 * cost["flops"] / plain for name, cost in result["steps"].items()}
    assert forwards["sCT, dual"] == pytest.approx(4.0, abs=0.1)
    assert forwards["sCT, dual_checkpoint"] == pytest.approx(5.0, abs=0.2)
    assert forwards["sCT, two_pass"] == pytest.approx(6.0, abs=0.1)
    assert forwards["sCD, dual"] == pytest.approx(5.0, abs=0.1)
    assert set(result["attention"]) == {"16", "32"}
    assert "a plain diffusion step is 1" in capsys.readouterr().out


def students():
    """One of every kind of conditions, and an objective without a derivative."""
    teacher, guidance = mlp(num_classes=3), GuidanceProposal()
    guided = (mlp(num_classes=3, guided=True), TeacherVelocity(), teacher)
    pair = PairVelocity()
    return {
        "sCD": ConsistencyModule(*guided, path=PATH, guidance=guidance),
        "MeanFlow": ConsistencyModule(
            mlp(num_classes=3, two_times=True), objective=MeanFlow(), path=PATH
        ),
        "Segments": ConsistencyModule(mlp(num_classes=3, two_times=True), pair, None, Segments(3)),
        "Discrete": ConsistencyModule(mlp(num_classes=3), objective=Discrete(9), path=PATH),
    }


@pytest.mark.parametrize("kind", students())
def test_a_student_s_own_step_is_measured(kind, randn):
    """Guided, of two times: by every method that its objective has, beside a plain one.

    A plain step is three forwards; the student's by dual numbers one more, the guided teacher's
    two. A network's derivative takes its layers but not what depends on labels alone.
    """
    model = students()[kind]
    batch = Batch(PATH.sigma_data * randn(7, 3).float(), torch.arange(7) % 3)
    steps = training_steps(model, batch)
    expected = [kind] if kind == "Discrete" else [f"{kind}, {name}" for name in BY_NAME]
    assert list(steps) == ["diffusion", *expected]
    costs = measure(steps, model.student.parameters(), 1)
    forwards = {name: 3 * cost.flops / costs["diffusion"].flops for name, cost in costs.items()}
    own = 6.0 if kind == "sCD" else 4.0
    assert forwards[expected[0]] == pytest.approx(own, abs=0.4)
    for parameter in model.student.parameters():
        assert parameter.grad is not None


def test_no_rounds_are_refused(tmp_path, capsys):
    config = ["--config", str(BENCHMARKS / "unet.yaml"), "--rounds", "0"]
    with pytest.raises(SystemExit):
        main(["bench", *config, "--trainer.default_root_dir", str(tmp_path)])
    assert "bench takes at least 1 round" in capsys.readouterr().err
