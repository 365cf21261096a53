# SPDX-License-Identifier: Apache-2.0
"""Dual numbers with activation checkpointing: a block keeps its input, not what happens inside.

Going forward, value and tangent run through a block, and autograd keeps nothing of it. Going
backward, the values are computed once more, under the random state and autocast of the first time
(`torch.utils.checkpoint`); the tangents are not, since nothing of them has a gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from scm_lightning.autodiff.dual import tangent_of


@contextmanager
def checkpointed_blocks(network: nn.Module) -> Iterator[None]:
    """Let the blocks of a network be computed twice instead of kept, inside the context.

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
    def run(*positional: Any, **named: Any) -> Any:
        args = (*positional, *named.values())
        tangents = [tangent_of(each) for each in args]
        # Kept until the backward pass: aliases, which have a tangent in the first pass alone.
        aliases = [x if tx is None else x.view_as(x) for x, tx in zip(args, tangents, strict=True)]
        levels = [x.level for x, tx in zip(args, tangents, strict=True) if tx is not None]

        def call(*inputs: Any) -> Any:
            num = len(positional)
            return forward(*inputs[:num], **dict(zip(named, inputs[num:], strict=True)))

        def once(*inputs: Any) -> Any:
            if not levels:
                return call(*inputs)
            level = levels.pop()
            for x, tx in zip(inputs, tangents, strict=True):
                if tx is not None:
                    level.join(x, tx)
            out = call(*inputs)
            for x, tx in zip(inputs, tangents, strict=True):
                if tx is not None:
                    level.part(x)
            tangents.clear()
            levels.clear()
            return out

        return checkpoint(once, *aliases, use_reentrant=False)

    return run
