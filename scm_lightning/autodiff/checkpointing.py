# SPDX-License-Identifier: Apache-2.0
"""Dual numbers with activation checkpointing: a block keeps its input, not what happens inside.

Going forward, value and tangent run through a block without a graph. Going backward, the values
are computed once more, with a graph, under the random state and autocast of the first time; the
tangents are not, since they have no gradient. (torch.utils.checkpoint wants the operations
of both times to be the same, which those with a rule and without need not be.)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scm_lightning.autodiff.dual import (
    TangentError,
    Traced,
    is_dual,
    plain,
    primal_of,
    tangent_of,
)


@contextmanager
def checkpointed_blocks(network: nn.Module) -> Iterator[None]:
    """Compute the blocks of a network twice instead of keeping them, inside the context.

    Args:
        network: its blocks, see `outermost_blocks`, take tensors and return one.

    Raises:
        ValueError: if the network has no such blocks.
    """
    blocks = dict.fromkeys(outermost_blocks(network))  # one may be used twice
    if not blocks:
        raise ValueError(
            f"dual_checkpoint computes the members of an nn.ModuleList or nn.Sequential twice, "
            f"found none in {type(network).__name__}; keep the blocks in one, or use the tangent "
            "method dual"
        )
    for block in blocks:
        block.forward = _checkpointed(block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own appears again


def outermost_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Blocks of a network: what its outermost lists and chains are made of.

    Of an `nn.ModuleList` all members, of an `nn.Sequential` those that are made of modules
    themselves: single layers, such as those of an embedding, are too small.
    """
    for child in module.children():
        is_block = isinstance(module, nn.ModuleList) or (
            isinstance(module, nn.Sequential) and any(child.children())
        )
        if is_block and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from outermost_blocks(child)


def _checkpointed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **named: Any) -> Any:
        given = [*args, *named.values()]
        if not any(map(is_dual, given)):
            return forward(*args, **named)
        num, names = len(args), tuple(named)  # all that `call` keeps of them
        places = [i for i, x in enumerate(given) if is_dual(x) or isinstance(x, Tensor)]
        tensors = [given[place] for place in places]
        tangents = [tangent_of(x) for x in tensors]
        with torch._C.DisableTorchFunction():  # aliases without tangents, to be kept until then
            values = [
                x if tangent is None else primal_of(x).view_as(primal_of(x))
                for x, tangent in zip(tensors, tangents, strict=True)
            ]
        carrier = next(filter(is_dual, given))
        join = Traced if isinstance(carrier, Traced) else carrier.level.join
        for place in places:
            given[place] = None

        def call(*inputs: Any) -> Any:
            full = list(given)
            for place, x in zip(places, inputs, strict=True):
                full[place] = x
            return forward(*full[:num], **dict(zip(names, full[num:], strict=True)))

        weights = [each for each in block.parameters() if each.requires_grad]
        out, tangent = _Recomputed.apply(  # type: ignore[no-untyped-call]
            call, join, tangents, *values, *weights
        )
        return join(out, tangent)

    return run


class _Recomputed(torch.autograd.Function):
    """A block's value with a gradient, and its tangent without one.

    The tensors are the block's inputs and, so that autograd hands out their gradients, its weights.
    """

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[..., Any],
        join: Callable[[Tensor, Tensor], Any],
        tangents: list[Tensor | None],
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.run, ctx.num_inputs = run, len(tangents)
        ctx.save_for_backward(*tensors)
        device = tensors[0].device
        ctx.autocast = {
            "device_type": device.type,
            "dtype": torch.get_autocast_dtype(device.type),
            "enabled": torch.is_autocast_enabled(device.type),
        }
        ctx.cpu_state = torch.get_rng_state()
        ctx.cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        pairs = zip(tensors, tangents, strict=False)
        out = run(*(x if tx is None else join(x.view_as(x), tx) for x, tx in pairs))
        tangent = tangent_of(out)
        if tangent is None:
            raise TangentError("the block lost the tangent")
        ctx.mark_non_differentiable(tangent)
        return plain(out), tangent

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        tensors = ctx.saved_tensors
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in tensors[: ctx.num_inputs]]
        device = tensors[0].device
        forked = torch.random.fork_rng([] if ctx.cuda_state is None else [device])
        with forked, torch.enable_grad(), torch.autocast(**ctx.autocast):
            torch.set_rng_state(ctx.cpu_state)
            if ctx.cuda_state is not None:
                torch.cuda.set_rng_state(ctx.cuda_state, device)
            out = ctx.run(*inputs)
        leaves = (*inputs, *tensors[ctx.num_inputs :])
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, gradients[0], allow_unused=True))
        return None, None, None, *(next(found) if leaf.requires_grad else None for leaf in leaves)
