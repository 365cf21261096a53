# SPDX-License-Identifier: Apache-2.0
"""Networks cut into pieces, one per process, and put together again for checkpoints (FSDP2).

Every network of a module is sharded: one that is trained and left whole would get no gradients from
the other processes, silently. Its blocks are sharded one by one, then what is left of it, so
that only one block at a time is whole. Outside of its forward and backward all its parameters are
`DTensor`s, in every process the same part of each: an average can follow its network in place.

Nothing is cast: under autocast the weights are gathered in float32, since times and embeddings need
it. Buffers stay whole.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import broadcast
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from scm_lightning.autodiff.checkpointing import outermost_blocks


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard all networks of a module: its children, at any depth, with a forward of their own.

    Networks that are sharded already stay as they are. The others start in every process from the
    weights and buffers of the first one.

    Args:
        module: owner of the networks; it is not sharded itself.
        mesh: the processes, along one dimension.

    Raises:
        ValueError: if a trained parameter lies outside of all networks.
    """
    for network in _networks(module):
        if isinstance(network, FSDPModule):
            continue
        _copy_from_first_process(network, mesh)
        blocks = (block for block in outermost_blocks(network) if _has_parameters(block))
        for part in (*blocks, network):
            # The default keeps the outermost part whole after a forward without gradients, and the
            # average after sampling would no longer fit its network.
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            raise ValueError(
                f"a trained parameter must lie in a submodule with a forward of its own, or it "
                f"gets no gradients from other processes; got '{name}' outside: move it into one"
            )


def full_tensor(x: Any) -> Any:
    """Gather a sharded tensor; return anything else as it is. All processes must take part."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def sharded_like(x: Tensor, own: Tensor) -> Tensor:
    """Cut a tensor that every process holds as another one is cut.

    Args:
        x: the whole tensor, or one that is cut by rows already. (...).
        own: a tensor of the same shape; if it is whole, a whole `x` is returned. (...).
    """
    if not isinstance(own, DTensor) or x.shape != own.shape:
        return cast("Tensor", full_tensor(x))
    if isinstance(x, DTensor):
        assert x.placements == own.placements, "networks are cut by rows"
        return x.to(own.device, own.dtype)
    on_device = x.to(own.device, own.dtype)
    # Without a source every process cuts its own copy, and nothing is sent.
    return distribute_tensor(on_device, own.device_mesh, own.placements, src_data_rank=None)


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """Outermost descendants that have parameters and can be called."""
    for child in module.children():
        if type(child).forward is nn.Module.forward:
            yield from _networks(child)
        elif _has_parameters(child):
            yield child


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


@torch.no_grad()
def _copy_from_first_process(network: nn.Module, mesh: DeviceMesh) -> None:
    for each in (*network.parameters(), *network.buffers()):
        on_device = each.detach().to(mesh.device_type)
        broadcast(on_device, group=mesh.get_group(), group_src=0)
        each.copy_(on_device)
