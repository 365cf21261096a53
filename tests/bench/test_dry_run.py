# SPDX-License-Identifier: Apache-2.0
"""`scm bench --dry_run true`: sums by hand, fake tensors against real ones, runs without files."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from scm_lightning.autodiff import TangentComputer
from scm_lightning.bench.counting import Counter, gathered_memory, state_memory
from scm_lightning.bench.dry_run import count_step, dry_run, make_batch, step_cost
from scm_lightning.bench.measuring import peak_memory
from scm_lightning.bench.plan import GIB, GPU, Plan, StepCost, share
from scm_lightning.cli import main
from scm_lightning.core import GuidanceProposal, TrigFlow
from scm_lightning.modules import ConsistencyModule, DiffusionModule, HalfLife, PowerFunction
from scm_lightning.networks import EDM2_SIZES, MLP, DiT, EDM2UNet, UNet, VideoDiT
from scm_lightning.objectives import Consistency, PairVelocity, TeacherVelocity

ROOT = Path(__file__).parents[2]
PATH = TrigFlow(sigma_data=0.7)
IMAGE = (3, 8, 8)


def consistency(student, velocity, teacher=None, method="dual", **options):
    return ConsistencyModule(
        student,
        velocity,
        teacher,
        init=None,
        path=PATH,
        # Costs of a step alone.
        objective=Consistency(tangents=TangentComputer(method, check=False)),
        **options,
    )


def unet(**options):
    return UNet(IMAGE, model_channels=8, channel_mult=(1,), num_classes=3, **options)


def dit(**options):
    return DiT(IMAGE, model_channels=16, num_blocks=1, num_heads=2, num_classes=3, **options)


def mlp():
    return MLP((6,), model_channels=64, emb_channels=4)


def guided_distillation():
    student = dit(guided=True)
    return consistency(student, TeacherVelocity(), dit(), guidance=GuidanceProposal())


MODULES = {
    "diffusion": lambda: DiffusionModule(mlp(), PATH),
    "sCT": lambda: consistency(unet(dropout=0.1), PairVelocity()),
    "sCT, checkpointed": lambda: consistency(mlp(), PairVelocity(), method="dual_checkpoint"),
    "sCT, func": lambda: consistency(dit(), PairVelocity(), method="func"),
    "by text and image": lambda: DiffusionModule(dit(text_channels=6, image_channels=2), PATH),
    "clips by text and image": lambda: DiffusionModule(
        VideoDiT((1, 3, 8, 8), 2, 16, 1, 2, text_channels=6, image_channels=2), PATH
    ),
    "sCD, guided": guided_distillation,
}


def counted(make, precision="32-true"):
    """The plan of a module that has no weights."""
    with torch.device("meta"):
        module = make()
    return dry_run(tiny.trainer(7, precision=precision), module, global_batch=11)


def test_live_memory_by_hand():
    """Results count until they are let go; views and what was there before do not."""
    x, w = torch.randn(5, 8), torch.randn(8, 16)
    with Counter([x, w]) as memory:
        y = x @ w.t().t()
        z = y + 1
        assert memory.bytes == 2 * 5 * 16 * 4
        del y
        assert memory.bytes == 5 * 16 * 4
        z = z.view(16, 5)[:2]
        assert memory.bytes == 5 * 16 * 4
        del z
    assert (memory.bytes, memory.peak) == (0, 2 * 5 * 16 * 4)


def test_state_by_hand():
    """One layer of 3 x 4 + 4 numbers: trained, twice in Adam, averaged twice, and a teacher."""
    layer = nn.Linear(3, 4)
    head = 129  # of the weighting: 128 channels to one number
    module = consistency(
        layer, TeacherVelocity(), nn.Linear(3, 4), ema=[HalfLife(), PowerFunction(0.1)]
    )
    state = state_memory(module, module.optimizer)
    counters = 2 * 2 * 8  # steps and images of every average
    assert state == (
        4 * (16 + head),
        4 * (16 + head),
        2 * 4 * (16 + head),
        2 * 4 * 16 + counters,
        4 * 16,
    )
    plain = state_memory(module, lambda groups: torch.optim.SGD(groups, lr=0.1))
    assert (plain.optimizer, plain.total) == (0, state.total - state.optimizer)


def test_two_blocks_are_gathered_and_what_is_in_none():
    network = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(3, 3), nn.Linear(5, 5)]))
    assert gathered_memory(network) == 4 * (6 + 2 * 30)


def test_shares_by_hand():
    """A state of 64 GiB, blocks of 1, a step of 2 + 0.5 per image, 256 images."""
    state = state_memory(DiffusionModule(nn.Linear(1, 1), PATH), torch.optim.Adam)
    state = type(state)(*(size * GIB for size in (16, 16, 32, 0, 0)))
    step = StepCost(1e9, 3e9, 2 * GIB, GIB // 2)
    plan = Plan("Net", 4, step, state, GIB, global_batch=256, steps=1000)
    assert plan.flops == 1000 * 256 * 3e9
    whole, eighth, small = share(plan, 1, 80 * GIB), share(plan, 8, 80 * GIB), share(plan, 8, GIB)
    assert (whole.state, whole.gathered, whole.total) == (64 * GIB, 0, (64 + 2 + 128) * GIB)
    assert (whole.micro_batch, whole.parts) == (28, 10)
    assert (eighth.total, eighth.batch) == ((8 + 1 + 2 + 16) * GIB, 32)
    assert (eighth.micro_batch, eighth.parts) == (138, 1)
    assert (small.micro_batch, small.parts) == (0, 0)
    assert GPU(tflops=100.0, utilization=0.5).days(50e12 * 86400) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "precision", "forwards"),
    [
        ("diffusion", "32-true", 3.0),
        ("sCT", "32-true", 4.0),
        ("sCT, checkpointed", "32-true", 5.0),
        ("sCT, func", "32-true", 5.0),
        ("by text and image", "32-true", 3.0),
        ("clips by text and image", "32-true", 3.0),
        ("sCD, guided", "32-true", 6.1),  # the teacher's takes two, an attention's tangent 1.5
        ("sCD, guided", "bf16-mixed", 6.1),
    ],
)
def test_fake_tensors_cost_what_real_ones_do(kind, precision, forwards):
    make = MODULES[kind]
    plan, module = counted(make, precision), make()
    assert plan.step == step_cost(tiny.trainer(7, precision=precision), module)
    assert plan.step.flops / plan.step.forward_flops == pytest.approx(forwards, abs=0.15)
    assert plan.parameters == sum(each.numel() for each in module.trained_network().parameters())
    assert plan.state == state_memory(module, module.optimizer)


@pytest.mark.parametrize("kind", ["diffusion", "sCT, checkpointed"])
def test_the_profiler_sees_the_same_memory(kind):
    """An independent count, of the allocator's calls: scratch memory inside operations is in it."""
    module = MODULES[kind]()
    step = step_cost(tiny.trainer(7), module)
    batch = make_batch(module, 48)

    def run():
        out = module.training_step(batch, 0)
        (out["loss"] if isinstance(out, dict) else out).backward()

    # The most is not held at the same place of a step at every batch size: nearly a line.
    assert step.memory(48) == pytest.approx(count_step(module, batch).peak, rel=0.02)
    assert step.memory(48) == pytest.approx(peak_memory(run), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "gmacs"), [("S", 101), ("M", 179), ("L", 279), ("XL", 402), ("XXL", 547)]
)
def test_edm2_takes_the_flops_of_the_paper(size, gmacs):
    def make():
        return DiffusionModule(EDM2UNet((4, 64, 64), EDM2_SIZES[size], num_classes=1000), PATH)

    plan = counted(make, "bf16-mixed")
    assert plan.step.forward_flops / 2e9 == pytest.approx(gmacs, rel=0.005)


def planned(tmp_path, config, *options):
    """The JSON of a dry run of the command line."""
    file = tmp_path / "plan.json"
    main(["bench", "--config", str(config), "--dry_run", "true", "--json", str(file), *options])
    return json.loads(file.read_text())


def test_a_student_is_planned_without_its_teacher_data_or_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = {
        "trainer.accelerator": "gpu",
        "trainer.devices": "8",
        "trainer.num_nodes": "2",
        "trainer.precision": "bf16-mixed",
        "trainer.strategy": "fsdp2",
        "gpu.memory_gib": "40",
    }
    plan = planned(
        tmp_path,
        ROOT / "configs" / "digits_scd.yaml",
        *(f"--{key}={value}" for key, value in options.items()),
    )
    assert plan["global_batch"] == 128 * 8 * 2
    assert plan["steps"] == 2600
    assert plan["flops"] == pytest.approx(2600 * 128 * 16 * plan["step"]["flops"])
    assert plan["step"]["flops"] / plan["step"]["forward_flops"] == pytest.approx(5.0, abs=0.1)
    assert plan["state"]["frozen"] == pytest.approx(plan["state"]["averages"], rel=1e-4)
    assert plan["gpu"]["memory_gib"] == 40.0
    assert [each["num_gpus"] for each in plan["shares"]] == [1, 8, 64]
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    out = capsys.readouterr().out
    assert "MLP, 0.9 M parameters" in out
    assert "GPU-days" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.accelerator", "gpu"], "got batch_size 128 and devices auto; give"),
        (["--global_batch", "0"], "global_batch must be at least 1, got 0"),
        (["--gpu.utilization", "2"], "a utilization in (0, 1], got"),
        (["--model.init_args.teacher", "null"], "TeacherVelocity needs a teacher, got none"),
    ],
)
def test_a_plan_is_refused_in_one_line(options, message, capsys):
    config = ["--config", str(ROOT / "configs" / "digits_scd.yaml")]
    with pytest.raises(SystemExit):
        main(["bench", *config, "--dry_run", "true", *options])
    lines = [each for each in capsys.readouterr().err.splitlines() if "Seed set" not in each]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_step_that_looks_at_numbers_is_refused():
    class Nosy(MLP):
        def forward(self, u, t, labels=None, guidance=None, t_end=None):
            return super().forward(u, t, labels) * float(u.sum())

    with pytest.raises(ValueError, match="looks at those of aten"):
        counted(lambda: DiffusionModule(Nosy(IMAGE, model_channels=8), PATH))
