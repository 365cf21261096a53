# SPDX-License-Identifier: Apache-2.0
"""Reductions of the gradients of sharded networks that are wrong, in the place of FSDP2's own."""

import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter


class Broken(ReduceScatter):
    """Where gradients are laid out; what becomes of them is left to its children."""

    def allocate(self, size, *, dtype, device):
        return torch.empty(*size, dtype=dtype, device=device)


class KeepsOwn(Broken):
    """Every process goes on with its own gradients: nothing is sent."""

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False):
        output_tensor.copy_(input_tensor.chunk(group.size())[group.rank()])


class Forgets(Broken):
    """The second process does not count."""

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False):
        counted = input_tensor if group.rank() != 1 else torch.zeros_like(input_tensor)
        distributed.reduce_scatter_single(output_tensor, counted, group=group, op=op)


class Swaps(Broken):
    """The mean is right, and every process gets another one's slice of it."""

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False):
        swapped = torch.cat(input_tensor.chunk(group.size())[::-1])
        distributed.reduce_scatter_single(output_tensor, swapped, group=group, op=op)


BROKEN = {"slice kept": KeepsOwn, "process forgotten": Forgets, "slices swapped": Swaps}


def break_reduction(network, mistake):
    """Make a mistake in a sharded network, if it is one of those here."""
    if mistake == "sync left off":
        network.set_requires_gradient_sync(False)
    for part in network.modules():
        if mistake in BROKEN and isinstance(part, FSDPModule):
            part.set_custom_reduce_scatter(BROKEN[mistake]())
