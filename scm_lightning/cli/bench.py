# SPDX-License-Identifier: Apache-2.0
"""`scm bench`: the cost of a training step by every tangent method, on a configuration's network.

All figures are ratios to one plain diffusion step of the same network on the same batch, in one
process, medians over interleaved rounds: absolute times depend on the machine and its load. With
`--dry-run`, what the configured run would need.
"""

from copy import deepcopy
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: on
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from scm_lightning.bench import (
    GPU,
    attention_steps,
    measure,
    report_costs,
    report_plan,
    training_steps,
)
from scm_lightning.bench import dry_run as count
from scm_lightning.bench.tables import network_title
from scm_lightning.core import NULL_LABEL
from scm_lightning.data import Batch
from scm_lightning.given_files import given_path
from scm_lightning.modules import GenerativeModule
from scm_lightning.networks.classes import check_labels, num_known_classes
from scm_lightning.saying import say
from scm_lightning.teachers import SourceTeacher

TOKENS = (512, 1024, 2048, 4096, 8192)
ONE_PROCESS = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
"""Trainer options that a dry run itself runs with, whatever the configuration says."""
NO_DATA = "lightning.pytorch.LightningDataModule"
"""A data module without data: the command line insists on one."""
NOTHING_WRITTEN = {"logger": False, "callbacks": None, "enable_progress_bar": False}
ADDED_CONDITIONS = ("guided", "two_times")
"""Options of a student's network that its teacher is built without."""


class BenchTrainer(Trainer):
    """Lightning's trainer, which `scm bench` lets measure a step."""

    def bench(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        rounds: int = 15,
        compiled: bool = False,
        dry_run: bool = False,
        global_batch: int | None = None,
        gpu: GPU = GPU(),
        json: str | None = None,
    ) -> None:
        """Measure the training step of a configuration; write `bench.json`.

        A dry run counts instead what the run would need, without weights, data or a GPU.

        Args:
            model: a teacher's or student's module, whose network is measured.
            datamodule: its data, for one batch; None in a dry run.
            rounds: rounds to take the median over.
            compiled: whether to measure compiled steps too; compiling takes minutes.
            dry_run: whether to count instead of measuring; see `scm_lightning.bench.dry_run`.
            global_batch: images per optimizer step that a dry run plans with; None for batch size
                times devices, nodes and accumulated batches of the configuration.
            gpu: the GPU that a dry run plans with.
            json: file that the numbers are written to; None for `bench.json` in the run's folder,
                and for no file in a dry run.

        Raises:
            ValueError: if there are no rounds, or the model is none of this package's.
        """
        if rounds < 1 or not isinstance(model, GenerativeModule):
            raise ValueError(
                f"bench takes at least 1 round and a DiffusionModule or ConsistencyModule, got "
                f"{rounds} and {type(model).__name__}"
            )
        if dry_run:
            assert global_batch is not None, "the command line fills it in"
            report_plan(count(self, model, global_batch), gpu, json)
            return
        assert datamodule is not None, "the command line makes one"
        device = self.strategy.root_device
        batch = _first_batch(model, datamodule, device)
        network = model.to(device).train().trained_network()
        model.trainer = self  # knows how long the run is
        steps = training_steps(model, batch, compiled)
        with self.precision_plugin.train_step_context():
            costs = measure(steps, network.parameters(), rounds)
        attention = {
            tokens: measure(attention_steps(tokens, device), [], max(3, rounds // 3))
            for tokens in TOKENS
        }
        parameters = sum(parameter.numel() for parameter in network.parameters())
        title = f"{network_title(type(network).__name__, parameters)}, batch {len(batch.x0)}"
        file = Path(given_path(json or f"{self.default_root_dir}/bench.json"))
        report_costs(title, costs, attention, file, device)


def _first_batch(
    model: GenerativeModule, datamodule: LightningDataModule, device: torch.device
) -> Batch:
    datamodule.prepare_data()
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    if batch.labels is not None:
        check_labels(batch.labels, num_known_classes(model), NULL_LABEL)
    moved: Batch = move_data_to_device(batch, device)
    return moved


def prepare(config: Namespace) -> None:
    """Change the configuration of a run into one that needs no files and no GPU.

    The teacher's checkpoint, or that of another source, gives way to a network of the student's
    configuration, and data, metrics and weights to begin with to nothing.

    Args:
        config: of the subcommand; changed.

    Raises:
        ValueError: if the number of images in a step cannot be told.
    """
    if config.global_batch is None:
        config.global_batch = _configured_batch(config)
    model = config.model.init_args
    if isinstance(model.get("init"), str | Namespace):
        model.init = None
    if is_of_a_source := _is_of_a_source(model.get("teacher")):
        say("the teacher's file is not opened: it counts as a network of the student's size")
    if isinstance(model.get("teacher"), str) or is_of_a_source:
        model.teacher = deepcopy(model.student if "student" in model else model.network)
        for name in ADDED_CONDITIONS:
            if name in model.teacher.init_args:
                model.teacher.init_args[name] = False
    if isinstance(tangents := model.get("objective.init_args.tangents"), Namespace):
        tangents.init_args.compile = False
    config.data = Namespace(class_path=NO_DATA)  # type: ignore[no-untyped-call]
    config.metrics.features = None
    for name, value in {**ONE_PROCESS, **NOTHING_WRITTEN}.items():
        config.trainer[name] = value


def _is_of_a_source(teacher: Any) -> bool:
    """Tell whether a teacher's configuration names a model of another source."""
    if not isinstance(teacher, Namespace):
        return False
    kind = resolve_name(teacher.class_path)
    return isinstance(kind, type) and issubclass(kind, SourceTeacher)


def _configured_batch(config: Namespace) -> int:
    """Images per optimizer step over all processes, from their number in one."""
    batch_size = config.get("data.init_args.batch_size")
    devices = config.trainer.devices
    if isinstance(devices, list):
        devices = len(devices)
    if devices == "auto" and config.trainer.accelerator == "cpu":
        devices = 1
    if not (isinstance(batch_size, int) and str(devices).isdecimal()):
        raise ValueError(
            f"a dry run needs the number of images in an optimizer step, got batch_size "
            f"{batch_size} and devices {devices}; give --global_batch, or numbers for both"
        )
    accumulated = config.trainer.accumulate_grad_batches
    return int(batch_size * int(devices) * config.trainer.num_nodes * accumulated)
