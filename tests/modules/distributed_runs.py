# SPDX-License-Identifier: Apache-2.0
"""Small runs for test_distributed.py, the same in one process and in several.

All that is random is fed: noise is a function of the data, and times belong to a row of the joined
batch, so that any number of processes trains on the same numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: split
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from scm_lightning import ConsistencyModule, DiffusionModule, TangentComputer, TrigFlow
from scm_lightning.callbacks import Checkpoints, Diagnostics, GradientSync
from scm_lightning.core import TangentWarmup, expand_time
from scm_lightning.data import Batch, RequestStream
from scm_lightning.data.loader import TrainingLoader
from scm_lightning.data.mapped import MappedBatches, MappedSplit
from scm_lightning.modules import PowerFunction
from scm_lightning.networks import MLP
from scm_lightning.networks.magnitude import MPLinear
from scm_lightning.objectives import Consistency, PairVelocity, TeacherVelocity
from scm_lightning.sampling import DiffusionSampling, FewStepSampling

SIGMA_DATA, JOINED_BATCH, NUM_STEPS, NUM_SAMPLES = 0.7, 12, 20, 5
FEW_STEPS = 8
"""Enough for RAdam, which adapts from its sixth step on."""
NUM_MAPPED = 29
"""Samples of a small set, so that twenty steps are eight passes and a bit."""


class NoiseOfTheData(TrigFlow):
    """A path whose noise is a function of the data, whichever process draws it."""

    def add_noise(self, x0, t, generator=None):
        z = 1.4 * self.sigma_data * (1000 * x0).sin()
        t = expand_time(t, x0)
        return t.cos() * x0 + t.sin() * z, z


class TimesOfTheRows:
    """Times that belong to a row of the joined batch of a step."""

    def __init__(self, rows, start, dtype):
        table = 0.02 + 1.5 * torch.rand(2 * NUM_STEPS, JOINED_BATCH, generator=seeded(1))
        self.rows = iter(table.to(dtype)[start:, rows])

    def sample(self, num, path, generator=None, device="cpu"):
        return next(self.rows)


class JoinedBatches(IterableDataset):
    """A process's rows of the joined batch of every step."""

    def __init__(self, rows, start, dtype, scale, with_pose=False):
        shape = (2 * NUM_STEPS, JOINED_BATCH)
        x0 = scale * SIGMA_DATA * torch.randn(*shape, 3, generator=seeded(2)).to(dtype)
        labels = torch.randint(4, shape, generator=seeded(3))
        pose = torch.randn(*shape, 2, generator=seeded(8)).to(dtype)
        each = zip(x0[start:, rows], labels[start:, rows], pose[start:, rows], strict=True)
        self.steps = [
            Batch(x0, labels, conditions={"pose": pose} if with_pose else {})
            for x0, labels, pose in each
        ]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.steps)


def mapped_batches(rank, world_size):
    """The loader that data modules use for small sets, on a set of random numbers."""
    x0 = SIGMA_DATA * torch.randn(NUM_MAPPED, 3, generator=seeded(5))
    labels = torch.randint(4, (NUM_MAPPED,), generator=seeded(6))
    split = MappedSplit(x0.numpy(), labels.numpy())
    batch_size = JOINED_BATCH // world_size

    def collate(arrays, labels, indices, positions, conditions):
        return Batch(*map(torch.from_numpy, (arrays, labels, indices)))

    batches = MappedBatches(split, collate, batch_size, 0, rank, world_size)
    return TrainingLoader(batches, batch_size, world_size, 1, 0, None)


class Record(Callback):
    """What a run leaves behind: losses of the whole batch, samples, gradient norms.

    If it goes on from a checkpoint, also a checkpoint of what it has when it starts.
    """

    def __init__(self, loaded):
        self.losses, self.samples, self.grad_norms = [], {}, []
        self.loaded = loaded

    def on_train_start(self, trainer, module):
        if self.loaded is not None:
            trainer.save_checkpoint(self.loaded)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"].detach().clone())))
        if "grad_norm" in trainer.logged_metrics:
            self.grad_norms.append(float(trainer.logged_metrics["grad_norm"]))

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx):
        for name, drawn in outputs.items():
            for index, x0 in zip(batch.indices.tolist(), drawn.x0, strict=True):
                self.samples[name, index] = x0


@dataclass
class Case:
    """A run: its module, and options of its trainer."""

    make: Callable[..., nn.Module]
    precision: str = "64-true"
    steps: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    with_pose: bool = False


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def mlp(seed):
    network = MLP((3,), model_channels=10, num_blocks=2, emb_channels=8, num_classes=4)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=seeded(seed))
    return network


class Posed(nn.Module):
    """A network that is told a pose, which moves what it says of the class."""

    def __init__(self, seed):
        super().__init__()
        self.network = mlp(seed)
        self.pose = nn.Linear(2, 3)
        nn.init.normal_(self.pose.weight, std=0.3, generator=seeded(seed))
        nn.init.zeros_(self.pose.bias)

    def forward(self, u, t, labels=None, guidance=None, *, pose):
        return self.network(u, t, labels, guidance) + torch.tanh(self.pose(pose)) * u


class PosedOrders(RequestStream):
    """Orders for samples of poses that follow from their numbers."""

    def __iter__(self):
        for order in super().__iter__():
            pose = torch.stack([order.indices.sin(), order.indices.cos()], 1).double()
            yield order._replace(conditions={"pose": pose})


class Normalized(nn.Module):
    """Layers whose weights are forced to unit variance after every step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.blocks = nn.ModuleList([MPLinear(4, 7), MPLinear(7, 3)])

    def forward(self, u, t, labels=None, guidance=None, t_end=None):
        first, second = self.blocks
        return second(torch.tanh(first(torch.cat([u, t[:, None].cos()], dim=1))))


def consistency(velocity, method, kind=ConsistencyModule, network=mlp):
    return kind(
        network(0),
        velocity,
        network(7),
        init=None,
        path=NoiseOfTheData(SIGMA_DATA),
        objective=Consistency(
            tangents=TangentComputer(method),
            warmup=TangentWarmup(NUM_STEPS),
            weighting_lr=0.03,
        ),
        optimizer=lambda groups: torch.optim.RAdam(groups, lr=0.01, betas=(0.9, 0.99)),
        ema=[PowerFunction(0.15), PowerFunction(0.2)],
        sampling=FewStepSampling(teacher=DiffusionSampling(2)),
    )


def diffusion(network):
    return DiffusionModule(network, NoiseOfTheData(SIGMA_DATA), sampling=DiffusionSampling(2))


SCT, SCD = PairVelocity, TeacherVelocity
METHODS = {
    f"{name}_{method}{'_float32' if precision == '32-true' else ''}": Case(
        lambda velocity=velocity, method=method: consistency(velocity(), method),
        precision,
        FEW_STEPS if precision == "64-true" else NUM_STEPS,
    )
    for precision in ("64-true", "32-true")
    for name, velocity in (("sct", SCT), ("scd", SCD))
    for method in (("dual", "func", "two_pass") if precision == "64-true" else ("dual", "two_pass"))
}
QUICK = ("sct_dual", "scd_dual", "sct_func", "scd_two_pass", "scd_dual_float32")
CASES = {
    **{name: METHODS[name] for name in QUICK},
    "scd_dual_checkpoint": Case(lambda: consistency(SCD(), "dual_checkpoint")),
    "scd_clipped": Case(lambda: consistency(SCD(), "dual"), options={"gradient_clip_val": 0.05}),
    "scd_posed": Case(lambda: consistency(SCD(), "dual", network=Posed), with_pose=True),
    "diffusion_normalized": Case(lambda: diffusion(Normalized())),
    "diffusion_accumulated": Case(
        lambda: diffusion(mlp(0)), options={"accumulate_grad_batches": 2}
    ),
}
EVERY = METHODS | CASES
"""All of them are trained by four processes, in the slow suite."""
BF16 = Case(lambda: consistency(SCD(), "dual"), precision="bf16-mixed")


@dataclass
class Place:
    """Where runs are: their folder, strategy, and this process among so many."""

    folder: Path
    strategy: str = "auto"
    rank: int = 0
    world_size: int = 1

    def run(self, case, start=0, stop=None, name=None, ckpt=None, mapped=False, **options):
        """Train a case, draw samples and leave a checkpoint and a record in the folder.

        Args:
            case: name of the case.
            start: optimizer steps of the checkpoint that the run goes on from.
            stop: optimizer steps at the end, those of the case by default.
            name: name of the files, the case's by default.
            ckpt: that checkpoint.
            mapped: data of the real loader, by its own position, and the real checkpoints.
            options: `module`, in the place of the case's; `scale` of the data.
        """
        torch.manual_seed(0)  # in every process, as `seed_everything` does
        rows = slice(*(JOINED_BATCH * r // self.world_size for r in (self.rank, self.rank + 1)))
        settings, name = EVERY.get(case, BF16), name or case
        stop = stop or settings.steps
        dtype = torch.float64 if settings.precision == "64-true" else torch.float32
        record = Record(None if ckpt is None else self.folder / f"{name}.loaded.ckpt")
        module = options.get("module") or settings.make()
        owner = module if isinstance(module, DiffusionModule) else module.objective
        owner.times = TimesOfTheRows(rows, start, dtype)
        callbacks = [record, Diagnostics(every_n_steps=1)]
        if "module" not in options:  # which are mistakes on purpose
            callbacks.append(GradientSync())
        trainer = Trainer(
            accelerator="cpu",
            strategy=self.strategy,
            devices=self.world_size,
            precision=settings.precision,
            max_steps=stop,
            callbacks=[*callbacks, *([Checkpoints(str(self.folder / name))] if mapped else [])],
            logger=False,
            enable_checkpointing=mapped,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings.options,
        )
        batches = JoinedBatches(rows, start, dtype, options.get("scale", 1.0), settings.with_pose)
        loader = DataLoader(batches, batch_size=None)
        trainer.fit(
            module,
            mapped_batches(self.rank, self.world_size) if mapped else loader,
            ckpt_path=ckpt,
        )
        seed = torch.initial_seed()  # Lightning sets PL_GLOBAL_SEED's anew when it tests
        assert {each.dtype for each in module.parameters()} == {dtype}
        trainer.save_checkpoint(self.folder / f"{name}.{stop}.ckpt")
        kind = PosedOrders if settings.with_pose else RequestStream
        orders = kind(NUM_SAMPLES, 4, 2, (3,), 0, self.rank, self.world_size)
        trainer.test(module, DataLoader(orders, batch_size=None), verbose=False)
        found = {key: vars(record)[key] for key in ("losses", "samples", "grad_norms")}
        found["seed"] = seed
        torch.save(found, self.folder / f"{name}.{stop}.{self.rank}.pt")
        return module
