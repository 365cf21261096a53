# SPDX-License-Identifier: Apache-2.0
"""Processes that train one model hold the same weights, and step with the same gradients.

Nothing else in a run notices when they do not: every process trains a model of its own, and the
first one's is saved. So before the first three optimizer steps of a run, and before every so many
later ones, the processes compare a checksum of every parameter and of its reduced gradient:

    sum_i (2 i + 1) bits_i  mod 2^64            bits_i: element i as an integer

which does not depend on the order of the sum, and changes with a flipped bit or two elements
exchanged. A ring or a tree of reductions gives all processes the same bits. Three steps, because a
network whose output starts at zero has gradients of most parameters from the second or third on.

The gradients are those of the real first batches, on the real path, accumulation included; nothing
is run twice. Sharded parameters (FSDP2) differ between processes by design: of these it is checked
that the gradient is cut as its parameter is, and is the mean of the processes' own, see
`sharded_sync`; whatever trains unsharded beside them is compared.

DDP reduces gradients in groups, each once all of its parameters have one. A parameter that a step
does not use keeps its whole group from being reduced, unless DDP was told to look for such; so
every step is checked for it, by each process for itself, before the next collective.
"""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from scm_lightning.callbacks.sharded_sync import ShardedSync

START_STEPS = 3
"""Steps that are checked at the start of a run."""
BIT_TYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class GradientSync(Callback):
    """Refuses to train processes apart; see the module.

    Args:
        at_start: whether the first steps are checked.
        every_n_steps: optimizer steps between two later checks; 0 for none.

    Raises:
        ValueError: if `every_n_steps` is negative.
    """

    def __init__(self, at_start: bool = True, every_n_steps: int = 1000) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps of checks must be at least 0, got {every_n_steps}")
        self.at_start = at_start
        self.every_n_steps = every_n_steps
        self._steps_to_check = 0
        self._sharded: ShardedSync | None = None
        self._waited_for: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the first steps, of a resumed run too."""
        self._steps_to_check = START_STEPS if self.at_start else 0
        self._sharded = ShardedSync(pl_module)
        self._waited_for = dict(_waited_for(trainer, pl_module))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the gradients of sharded parameters, in a step that is checked."""
        if self._sharded is not None and self._is_due(trainer):
            self._sharded.listen()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no hook behind."""
        self._waited_for = {}
        if self._sharded is not None:
            self._sharded.stop()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Look for parameters without a gradient; compare the processes, where it is due.

        Raises:
            ValueError: if DDP waits for a gradient that did not come, in each process that misses
                one; if the processes differ, before the step, in all of them.
        """
        step = trainer.global_step + 1
        _refuse_unused([name for name, x in self._waited_for.items() if x.grad is None], step)
        if not self._is_due(trainer):
            return
        self._steps_to_check -= 1
        if self._sharded is not None:
            _refuse(self._sharded.wrongly_reduced(), step)
        checksums = dict(_checksums(pl_module))
        if not checksums:
            return
        own = torch.stack(list(checksums.values()))
        least, most = own.clone(), own.clone()
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        differs = [name for name, x in zip(checksums, (least != most).tolist(), strict=True) if x]
        if differs:
            raise ValueError(
                f"all processes must have the same weights and gradients, but before step {step} "
                f"they differ in {differs[0]}, {len(differs)} of {len(checksums)} in all; use each "
                "parameter within training_step only and leave the strategy's reduction on, or, if "
                "that is so, look for a machine that computes wrongly"
            )

    def _is_due(self, trainer: Trainer) -> bool:
        """Tell whether the step under way is checked."""
        is_due = self._steps_to_check > 0
        if self.every_n_steps > 0:
            is_due |= (trainer.global_step + 1) % self.every_n_steps == 0
        return is_due and trainer.world_size > 1


def checksum(x: Tensor) -> Tensor:
    """Checksum of the bits of a tensor. Scalar, int64."""
    x = x.detach().contiguous().flatten()
    x = torch.view_as_real(x).flatten() if x.is_complex() else x
    bits = x.view(BIT_TYPES[x.element_size()])
    odd = torch.arange(bits.numel(), device=bits.device).mul_(2).add_(1)
    return odd.mul_(bits).sum()


def _waited_for(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    """Parameters, by name, without whose gradients DDP leaves those of others unreduced."""
    ddp = trainer.strategy.model
    if not isinstance(ddp, DistributedDataParallel):
        return
    if ddp.find_unused_parameters or ddp.static_graph:
        return
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and name not in ddp.parameters_to_ignore:
            yield name, parameter


def _refuse_unused(unused: list[str], step: int) -> None:
    if unused:
        raise ValueError(
            f"under ddp each parameter must have a gradient in every step, but step {step} gave "
            f"none to {unused[0]}, {len(unused)} such in all; give --trainer.strategy "
            "ddp_find_unused_parameters_true, or take what is not used out of the network"
        )


def _refuse(wrongly_reduced: list[str], step: int) -> None:
    if wrongly_reduced:
        raise ValueError(
            f"the gradient of a sharded parameter must be the mean of all processes' own, but "
            f"before step {step} that of {wrongly_reduced[0]} is not, {len(wrongly_reduced)} such "
            "in all; leave fully_shard's reduction of gradients as it is and on, or, if that is "
            "so, look for a machine that computes wrongly"
        )


def _checksums(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    """Checksums that must agree between processes, by name: int64 scalars, as many in all."""
    if all(each.grad is None for each in module.parameters()):
        raise ValueError(
            "a step must have gradients, got none for any parameter; leave the strategy's "
            "reduction on"
        )
    for name, parameter in module.named_parameters():
        gradient: Any = parameter.grad
        if isinstance(parameter, DTensor):
            if gradient is not None and not (
                isinstance(gradient, DTensor) and gradient.placements == parameter.placements
            ):
                raise ValueError(
                    f"the gradient of a sharded parameter must be reduced and cut as it is, got a "
                    f"gradient of {name} that is not; use it within its network's forward only"
                )
            continue
        yield f"the weights of {name}", checksum(parameter)
        without = torch.zeros((), dtype=torch.int64, device=parameter.device)
        yield f"the gradient of {name}", without if gradient is None else checksum(gradient)
