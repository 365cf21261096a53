# SPDX-License-Identifier: Apache-2.0
r"""FLOPs and memory of what runs, counted on tensors of any kind, those without numbers included.

    state       parameters + gradients + optimizer + averages + frozen networks,   over N GPUs
    gathered    parameters outside of blocks + 2 * largest block                   if N > 1
    step        what a step holds at once beside those: a + b * batch

A FLOP is a multiplication or an addition, in products, convolutions and attention; the EDM2 paper
counts multiply-adds (MACs), half as many. Under FSDP2 the state is cut into N equal parts; a
network's own parameters and, one by one, its blocks are whole while they are used, the next block
being fetched ahead. The step's constant part is what is made of the weights and kept for the
backward pass: their casts under autocast, or normalised copies. It is whole in every process.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import finalize

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import scm_lightning.autodiff.jvp_attention  # noqa: F401  defines the operation counted below
from scm_lightning.autodiff.checkpointing import outermost_blocks
from scm_lightning.autodiff.dual.forward_mode import storage_number
from scm_lightning.modules import EMA
from scm_lightning.modules.optimizing import OptimizerFactory

aten = torch.ops.aten


def attention_tangent_flops(
    q: Tensor, k: Tensor, v: Tensor, tq: object, tk: object, tv: object, *_: object, **__: object
) -> int:
    """Two products to find S and its tangent again for every tangent, one per value."""
    logits = 1 + (tq is not None) + (tk is not None)
    values = 1 + (tv is not None)
    shared = q.shape[-1] * logits + v.shape[-1] * values
    return 2 * math.prod(q.shape[:3]) * k.shape[2] * shared


FORMULAS = {
    **flop_registry,
    torch.ops.scm_lightning.attention_tangent: attention_tangent_flops,
    # Torch has the formula, but not for its operation on the CPU.
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
"""FLOPs of an operation, from its arguments."""


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of the FLOPs of operations and the storages that they make, less those let go.

    Torch's own counter of FLOPs has hooks that keep it from recomputation. Of memory, what an
    operation allocates and frees inside itself is not seen.

    Args:
        known: tensors that exist before, which do not count.

    Attributes:
        flops: of matrix products, convolutions and attention.
        bytes: held now.
        peak: most that was held at once. Bytes.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.bytes = self.peak = 0
        # Held, so that no new storage takes the place of a known one that was let go.
        self._before = [each.untyped_storage() for each in known]
        self._seen = {storage_number(storage) for storage in self._before}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation; add what it costs and what it made."""
        out = func(*args, **(kwargs or {}))
        if formula := FORMULAS.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for each in out if isinstance(out, list | tuple) else (out,):
            if isinstance(each, Tensor):
                self._hold(each.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage_number(storage), storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            finalize(storage, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size


class StateMemory(NamedTuple):
    """Memory that a run holds from step to step. Bytes, over all processes.

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
        return sum(self)


def state_memory(model: LightningModule, optimizer: OptimizerFactory) -> StateMemory:
    """Add up the tensors of a module, and what its optimizer adds.

    Args:
        model: on any device.
        optimizer: makes the optimizer from parameter groups.
    """
    trained = num_bytes(each for each in model.parameters() if each.requires_grad)
    averages = [each for each in model.modules() if isinstance(each, EMA)]
    averaged = num_bytes(tensor for each in averages for tensor in _held(each))
    optimized = round(trained * states_per_parameter(optimizer))
    frozen = num_bytes(_held(model)) - trained - averaged
    return StateMemory(trained, trained, optimized, averaged, frozen)


def states_per_parameter(optimizer: OptimizerFactory) -> float:
    """Numbers that an optimizer keeps for every parameter: 2 for Adam and RAdam.

    Found by a step on a small parameter.
    """
    parameter = nn.Parameter(torch.zeros(4, 4, device="cpu"))
    hold_gradients([parameter])
    instance = optimizer([{"params": [parameter]}])
    instance.step()
    kept = instance.state[parameter].values()
    states = (each for each in kept if isinstance(each, Tensor) and each.ndim)
    return num_bytes(states) / parameter.nbytes


def gathered_memory(network: nn.Module) -> int:
    """Bytes of a sharded network's parameters that are whole at once; see the module."""
    blocks = [num_bytes(block.parameters()) for block in outermost_blocks(network)]
    rest = num_bytes(network.parameters()) - sum(blocks)
    return rest + 2 * max(blocks, default=0)


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(each.nbytes for each in tensors)


def hold_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Set gradients to zeros before a step, so that its memory is its own."""
    for each in parameters:
        each.grad = torch.zeros_like(each) if each.requires_grad else None


def _held(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
