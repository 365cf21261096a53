# SPDX-License-Identifier: Apache-2.0
"""`scm bench --dry_run true`: what a configured run would need, without weights, data or a GPU.

The model is built on the meta device. Its own `training_step` and backward pass then run on fake
tensors (torch's `FakeTensorMode`), which know their shape and type but hold no numbers: dual
numbers, guidance, autocast and attention are counted as they are, not by a factor. Fake tensors
say they are on the CPU, for which autocast and fused attention have the same rules as on a GPU.

A FLOP is a multiplication or an addition, in products, convolutions and attention; the EDM2 paper
counts multiply-adds (MACs), half as many.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from rich.console import Console
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from scm_lightning.autodiff.dual import primal_of
from scm_lightning.cli.costs import FlopCounter
from scm_lightning.cli.memory import LiveMemory, gathered_memory, state_memory
from scm_lightning.cli.plan import Plan, StepCost
from scm_lightning.data import Batch
from scm_lightning.modules import GenerativeModule

BATCH = 16
"""Images that a step is counted on, and twice as many; fake tensors cost nothing."""
ONE_PROCESS = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
"""Where a dry run itself runs, whatever the configuration says."""
NO_DATA = "lightning.pytorch.LightningDataModule"
"""A data module without data: the command line insists on one."""
NOTHING_WRITTEN = {"logger": False, "callbacks": None, "enable_progress_bar": False}
ADDED_CONDITIONS = ("guided", "two_times")
"""Options of a student's network that its teacher is built without."""


def prepare(config: Namespace) -> None:
    """Change the configuration of a run into one that needs no files and no GPU.

    The teacher's checkpoint gives way to a network of the student's configuration, and data and
    metrics to nothing.

    Args:
        config: of the subcommand; changed.

    Raises:
        ValueError: if the number of images in a step cannot be told.
    """
    if config.global_batch is None:
        config.global_batch = configured_batch(config)
    model = config.model.init_args
    if isinstance(model.get("teacher"), str):
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


def configured_batch(config: Namespace) -> int:
    """Images per optimizer step over all processes, from their number in one.

    Args:
        config: of the subcommand.

    Raises:
        ValueError: if the data have no batch size or the devices no number.
    """
    batch_size = config.data.get("init_args", Namespace()).get("batch_size")  # type: ignore[no-untyped-call]
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


def dry_run(trainer: Trainer, model: GenerativeModule, global_batch: int) -> Plan:
    """Find out what a run needs.

    Args:
        trainer: of one process, with the run's precision and number of steps.
        model: the module, on the meta device; it is left with fake weights.
        global_batch: images per optimizer step, over all processes.

    Raises:
        ValueError: if the module cannot be counted.
    """
    if global_batch < 1:
        raise ValueError(f"global_batch must be at least 1, got {global_batch}")
    if not model.automatic_optimization:
        raise ValueError(
            f"a dry run counts modules that Lightning optimizes, {type(model).__name__} does so "
            "itself; measure a step of it with `scm fit`"
        )
    model.setup("fit")
    trainer.precision_plugin.convert_module(model)
    network = model.trained_network()
    status = Console().status("counting a training step")
    try:
        with status, FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")  # fake, as all tensors here
            model._device = torch.device("cpu")  # Lightning's note; fake tensors take no .to()
            step = step_cost(trainer, model)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(
            f"a dry run has no numbers, but the training step looks at those of {error.func}; "
            "write the step without it, or measure with `scm bench`"
        ) from error
    return Plan(
        network=type(network).__name__,
        parameters=sum(each.numel() for each in network.parameters()),
        step=step,
        state=state_memory(model, model.optimizer),
        gathered=gathered_memory(network),
        global_batch=global_batch,
        steps=max(trainer.max_steps, 0),
    )


def step_cost(trainer: Trainer, model: GenerativeModule) -> StepCost:
    """Cost of a training step, from two batches: one says what an image costs, both what is fixed.

    Args:
        trainer: whose precision is computed in.
        model: the module, with weights that are fake or real.
    """
    model.trainer = trainer
    model.train()
    autocast = trainer.precision_plugin.forward_context
    forward = forward_flops(model, make_batch(model, BATCH), autocast)
    _, less = count_step(model, make_batch(model, BATCH), autocast)
    flops, more = count_step(model, make_batch(model, 2 * BATCH), autocast)
    per_image = (more - less) // BATCH
    return StepCost(forward / BATCH, flops / (2 * BATCH), less - BATCH * per_image, per_image)


def make_batch(model: GenerativeModule, batch_size: int) -> Batch:
    """Images of zeros, with labels if the network knows classes.

    Raises:
        ValueError: if the network does not say which shape it takes.
    """
    network = model.trained_network()
    shape = getattr(network, "data_shape", None)
    if shape is None:
        raise ValueError(
            f"a dry run reads the shape of the data from network.data_shape, which "
            f"{type(network).__name__} has not; set the attribute"
        )
    classes = [getattr(module, "num_classes", 0) for module in network.modules()]
    labels = torch.zeros(batch_size, dtype=torch.int64) if any(classes) else None
    return Batch(torch.zeros(batch_size, *shape), labels)


def count_step(
    model: GenerativeModule, batch: Batch, autocast: Callable[[], AbstractContextManager[None]]
) -> tuple[int, int]:
    """FLOPs of a training step, and the most bytes that it holds beside parameters and gradients.

    Args:
        model: the module; its gradients are replaced.
        batch: data to train on.
        autocast: context of the forward pass.
    """
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    known = [*model.parameters(), *model.buffers(), *gradients, *_tensors(batch)]
    with LiveMemory(known) as memory, FlopCounter() as counter:
        with autocast():
            out: Any = model.training_step(batch, 0)
        loss = out["loss"] if isinstance(out, dict) else out
        loss.backward()
    return counter.flops, memory.peak


def forward_flops(
    model: GenerativeModule, batch: Batch, autocast: Callable[[], AbstractContextManager[None]]
) -> int:
    """FLOPs of one forward, with the conditions that the training step gives the network.

    Args:
        model: the module.
        batch: data to train on.
        autocast: context of the forward pass.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def remember(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((tuple(map(primal_of, args)), kwargs))

    network = model.trained_network()
    hook = network.register_forward_pre_hook(remember, with_kwargs=True)
    with autocast(), torch.no_grad():
        model.training_step(batch, 0)
        hook.remove()
        args, kwargs = calls[0]
        with FlopCounter() as counter:
            network(*args, **kwargs)
    flops: int = counter.flops
    return flops


def _tensors(batch: Batch) -> list[Tensor]:
    return [each for each in batch if each is not None]
