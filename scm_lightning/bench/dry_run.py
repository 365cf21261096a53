# SPDX-License-Identifier: Apache-2.0
"""A configured step, counted without weights, data or a GPU.

The model is built on the meta device. Its own `training_step` and backward pass then run on fake
tensors (torch's `FakeTensorMode`), which know their shape and type but hold no numbers: dual
numbers, guidance, autocast and attention are counted as they are, not by a factor. Fake tensors
say they are on the CPU, for which autocast and fused attention have the same rules as on a GPU.
"""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from scm_lightning.autodiff.dual import primal_of
from scm_lightning.bench.counting import (
    Counter,
    gathered_memory,
    hold_gradients,
    state_memory,
)
from scm_lightning.bench.plan import Plan, StepCost
from scm_lightning.data import Batch
from scm_lightning.modules import GenerativeModule
from scm_lightning.saying import working

TEXT_LENGTH = 77
"""Tokens of CLIP's texts."""
BATCH = 16
"""Images that a step is counted on, and twice as many; fake tensors cost nothing."""


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
            f"a dry run counts modules that Lightning optimizes, but {type(model).__name__} "
            "optimizes itself; measure a step of it with `scm fit`"
        )
    model.trainer = trainer  # knows how long the run is
    model.setup("fit")
    trainer.precision_plugin.convert_module(model)
    network = model.trained_network()
    try:
        with working("counting a training step"), FakeTensorMode(allow_non_fake_inputs=True):
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
    forward = forward_flops(model, make_batch(model, BATCH))
    less = count_step(model, make_batch(model, BATCH)).peak
    more = count_step(model, make_batch(model, 2 * BATCH))
    per_image = (more.peak - less) // BATCH
    flops = more.flops / (2 * BATCH)
    return StepCost(forward / BATCH, flops, less - BATCH * per_image, per_image)


def make_batch(model: GenerativeModule, batch_size: int) -> Batch:
    """Images of zeros, with labels and conditions if the network knows some.

    A text has the length of CLIP's.

    Raises:
        ValueError: if the network does not say which shape it takes.
    """
    network = model.trained_network()
    shape = getattr(network, "data_shape", None)
    if shape is None:
        raise ValueError(
            f"a dry run reads the shape of the data from network.data_shape, which "
            f"{type(network).__name__} does not have; set the attribute"
        )
    classes = [getattr(module, "num_classes", 0) for module in network.modules()]
    labels = torch.zeros(batch_size, dtype=torch.int64) if any(classes) else None
    conditions = {}
    if num_features := getattr(network, "text_channels", 0):
        conditions["text"] = torch.zeros(batch_size, TEXT_LENGTH, num_features)
        conditions["text_mask"] = torch.ones(batch_size, TEXT_LENGTH, dtype=torch.bool)
    if channels := getattr(network, "image_channels", 0):
        conditions["image"] = torch.zeros(batch_size, channels, *shape[-2:])
    return Batch(torch.zeros(batch_size, *shape), labels, conditions=conditions)


def count_step(model: GenerativeModule, batch: Batch) -> Counter:
    """Count what a training step computes, and holds beside parameters and gradients.

    Args:
        model: the module, of a trainer; its gradients are replaced.
        batch: data to train on.
    """
    hold_gradients(model.parameters())
    gradients = (each.grad for each in model.parameters())
    given = (batch.x0, batch.labels, *batch.conditions.values())
    known = (*model.parameters(), *model.buffers(), *gradients, *given)
    counter = Counter(each for each in known if each is not None)
    with counter:
        with model.trainer.precision_plugin.forward_context():
            out: Any = model.training_step(batch, 0)
        loss = out["loss"] if isinstance(out, dict) else out
        loss.backward()
    return counter


def forward_flops(model: GenerativeModule, batch: Batch) -> int:
    """FLOPs of one forward, with the conditions that the training step gives the network.

    Args:
        model: the module, of a trainer.
        batch: data to train on.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def remember(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((tuple(map(primal_of, args)), kwargs))

    network = model.trained_network()
    hook = network.register_forward_pre_hook(remember, with_kwargs=True)
    with model.trainer.precision_plugin.forward_context(), torch.no_grad():
        model.training_step(batch, 0)
        hook.remove()
        args, kwargs = calls[0]
        counter = Counter()
        with counter:
            network(*args, **kwargs)
    return counter.flops
