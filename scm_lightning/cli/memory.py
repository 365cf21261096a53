# SPDX-License-Identifier: Apache-2.0
r"""Memory of a training step, counted on tensors without numbers in them.

    state       parameters + gradients + optimizer + averages + frozen networks,   over N GPUs
    gathered    parameters outside of blocks + 2 * largest block                   if N > 1
    step        what a step holds at once beside those: a + b * batch

Under FSDP2 the state is cut into N equal parts; a network's own parameters and, one by one, its
blocks are whole while they are used, the next block being fetched ahead. The step's constant part
is what is made of the weights and kept for the backward pass: their casts under autocast, or
normalised copies. It is whole in every process.
"""

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any
from weakref import finalize

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scm_lightning.autodiff.checkpointing import outermost_blocks
from scm_lightning.autodiff.dual.forward_mode import storage_number
from scm_lightning.modules import EMA
from scm_lightning.modules.base import OptimizerFactory


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, and takes off those that are let go.

    Works on tensors of any device, those of `FakeTensorMode` included, whose storages know their
    size. What an operation allocates and frees inside itself is not seen.

    Args:
        known: tensors that exist before, which do not count.

    Attributes:
        bytes: held now.
        peak: most that was held at once. Bytes.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.peak = 0
        # Held, so that no new storage takes the place of a known one that was let go.
        self._before = [each.untyped_storage() for each in known]
        self._seen = {storage_number(storage) for storage in self._before}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, list | tuple) else (out,):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage_number(storage), storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        finalize(storage, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size


@dataclass(frozen=True)
class StateMemory:
    """What a run holds from step to step. Bytes, over all processes.

    Attributes:
        parameters: of the networks that are trained.
        gradients: one for each of them.
        optimizer: its states.
        averages: the averaged copies.
        frozen: networks that are not trained, such as the teacher, and buffers.
    """

    parameters: int
    gradients: int
    optimizer: int
    averages: int
    frozen: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))


def state_memory(model: LightningModule, optimizer: OptimizerFactory) -> StateMemory:
    """Add up the tensors of a module, and what its optimizer adds.

    Args:
        model: on any device.
        optimizer: makes the optimizer from parameter groups.
    """
    averages = {
        id(each) for module in model.modules() if isinstance(module, EMA) for each in _held(module)
    }
    everything = list(_held(model))
    trained = sum(each.nbytes for each in everything if each.requires_grad)
    averaged = sum(each.nbytes for each in everything if id(each) in averages)
    return StateMemory(
        parameters=trained,
        gradients=trained,
        optimizer=round(trained * states_per_parameter(optimizer)),
        averages=averaged,
        frozen=sum(each.nbytes for each in everything) - trained - averaged,
    )


def states_per_parameter(optimizer: OptimizerFactory) -> float:
    """How many numbers an optimizer keeps for every parameter: 2 for Adam and RAdam.

    It is asked by letting it step on a small parameter.
    """
    parameter = nn.Parameter(torch.zeros(4, 4, device="cpu"))
    parameter.grad = torch.zeros_like(parameter)
    instance = optimizer([{"params": [parameter]}])
    instance.step()
    kept = instance.state[parameter].values()
    sizes = [each.nbytes for each in kept if isinstance(each, Tensor) and each.ndim]
    return sum(sizes) / parameter.nbytes


def gathered_memory(network: nn.Module) -> int:
    """Bytes of a sharded network's parameters that are whole at once; see the module."""
    blocks = [_parameter_bytes(block) for block in outermost_blocks(network)]
    rest = _parameter_bytes(network) - sum(blocks)
    return rest + 2 * max(blocks, default=0)


def _held(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _parameter_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
