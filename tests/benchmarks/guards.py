# SPDX-License-Identifier: Apache-2.0
"""What guards, self-tests and logging add to a training step.

    python tests/benchmarks/guards.py
    torchrun --standalone --nproc_per_node 2 tests/benchmarks/guards.py --strategy ddp

The student of digits_scd.yaml, or of fashion16_scd.yaml with --network fashion16, on random
numbers, in one run: blocks of steps with the callbacks of every `scm fit` and blocks without take
turns, so that a machine that slows down slows both. Steps are timed from the end of one to the end
of the next, by the clock on the wall; the first ones of the run and of each block are left out.
"""

import argparse
import os
import tempfile
import time
import warnings
from statistics import median
from typing import Any

import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: split
import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, IterableDataset

from scm_lightning import ConsistencyModule, TrigFlow
from scm_lightning.callbacks import (
    BadNumbers,
    Checkpoints,
    Diagnostics,
    GradientSync,
    LostProcess,
    RunLog,
    StopSignals,
)
from scm_lightning.data import Batch
from scm_lightning.networks import MLP, DiT
from scm_lightning.objectives import TeacherVelocity

BLOCK, WARM_UP = 10, 20
STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


NETWORKS = {
    "digits": lambda: MLP((1, 8, 8), model_channels=256, num_blocks=4, num_classes=10),
    "fashion16": lambda: DiT((1, 16, 16), 4, model_channels=96, num_blocks=4, num_classes=10),
}


class RandomImages(IterableDataset):
    """Batches of one shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        x0 = 0.5 * torch.randn(128, *self.shape, generator=generator)
        while True:
            yield Batch(x0, torch.arange(128) % 10)


class Turns(Callback):
    """Switches the hooks of other callbacks on and off, block by block, and times steps.

    Args:
        switched: callbacks whose hooks of a step are switched.
    """

    def __init__(self, switched: list[Callback]) -> None:
        self.is_on, self.num_steps, self.last = True, 0, 0.0
        self.times: dict[bool, list[float]] = {True: [], False: []}
        for callback in switched:
            for name in STEP_HOOKS:
                setattr(callback, name, self._switched(getattr(callback, name)))

    def _switched(self, hook: Any) -> Any:
        return lambda *arguments: hook(*arguments) if self.is_on else None

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time of a step; it comes behind all others, being the last callback."""
        now, last = time.perf_counter(), self.last
        self.last, place = now, self.num_steps % BLOCK
        self.num_steps += 1
        if self.num_steps > WARM_UP and place:
            self.times[self.is_on].append(now - last)
        if self.num_steps > WARM_UP - BLOCK and place == BLOCK - 1:
            self.is_on = not self.is_on


def student(network: str) -> ConsistencyModule:
    """The student, with a teacher of random weights."""
    networks = [NETWORKS[network]() for _ in range(2)]
    module = ConsistencyModule(networks[0], TeacherVelocity(), networks[1], path=TrigFlow(0.5))
    module.batch_checks.first_samples = None  # random numbers are no images
    return module


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--network", choices=NETWORKS, default="digits")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        guards = [GradientSync(), BadNumbers(), StopSignals(), LostProcess()]
        switched = [*guards, Diagnostics(), Checkpoints(folder)]
        turns = Turns(switched)
        trainer = Trainer(
            accelerator="cpu",
            strategy=options.strategy,
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            max_steps=options.steps,
            callbacks=[*switched, turns],
            logger=RunLog(folder),
            log_every_n_steps=50,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        module = student(options.network)
        images = RandomImages(module.student.data_shape)
        trainer.fit(module, DataLoader(images, batch_size=None))
        if not trainer.is_global_zero:
            return
    on, off = (1000 * median(turns.times[each]) for each in (True, False))
    table = Table("network", "processes", "strategy", "without, ms", "with, ms", "added")
    row = (f"{off:.2f}", f"{on:.2f}", f"{100 * (on / off - 1):+.1f} %")
    table.add_row(options.network, str(trainer.world_size), options.strategy, *row)
    Console().print(table)


if __name__ == "__main__":
    main()
