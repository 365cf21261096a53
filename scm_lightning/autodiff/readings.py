# SPDX-License-Identifier: Apache-2.0
"""What every module of a network puts out in one pass: values, and tangents where there are any.

A pass leaves nothing behind: weights that are all zero get random numbers for its time, since a
fresh network says zero whatever its derivative; buffers, gradients, random numbers and whether
weights are double are put back.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from scm_lightning.autodiff.dual import tangent_of

functorch = torch._C._functorch


class Place(NamedTuple):
    """Where a number was read.

    Attributes:
        module: name of the module in the network; empty for the network itself.
        kind: name of its class.
        call: which of its calls.
        part: which of its outputs.
    """

    module: str
    kind: str
    call: int
    part: int

    def __str__(self) -> str:
        return f"module {self.module} ({self.kind})" if self.module else self.kind


class Reading(NamedTuple):
    """A value, without its graph, and its tangent; None for a constant. Same shape."""

    value: Tensor
    tangent: Tensor | None


Readings = dict[Place, Reading]
Split = Callable[[Tensor], Reading]


def plain(x: Tensor) -> Reading:
    """Reading of a tensor without tangent."""
    return Reading(x.detach().clone(), None)


def of_dual_number(x: Tensor) -> Reading:
    """Reading of a tensor with the tangent of our dual numbers, if it has one."""
    tangent = tangent_of(x)
    return Reading(x.detach().clone(), None if tangent is None else tangent.clone())


def of_forward_mode(x: Tensor) -> Reading:
    """Reading of a tensor inside `torch.func.jvp`."""
    value, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return Reading(_bare(value), None if tangent is None else _bare(tangent))


def _bare(x: Tensor) -> Tensor:
    """A tensor without the wrappers of torch.func."""
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return x.detach().clone()


@contextmanager
def read(network: nn.Module, split: Split) -> Iterator[Readings]:
    """Context that reads the outputs of all modules that are called inside it, in their order."""
    readings: Readings = {}
    calls: Counter[str] = Counter()

    def listen(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            with torch._C.DisableTorchFunction():
                for part, x in enumerate(_floats(out)):
                    place = Place(name, type(module).__name__, calls[name], part)
                    readings[place] = split(x)
            calls[name] += 1

        return hook

    with ExitStack() as stack:
        for name, module in network.named_modules():
            handle = module.register_forward_hook(listen(name))
            stack.callback(handle.remove)
        yield readings


def _floats(out: Any) -> Iterator[Tensor]:
    """Floating and complex tensors among a module's outputs."""
    if isinstance(out, Tensor):
        if out.is_floating_point() or out.is_complex():
            yield out
    elif isinstance(out, dict):
        yield from _floats(list(out.values()))
    elif isinstance(out, (tuple, list)):
        for each in out:
            yield from _floats(each)


class Untouched:
    """Keeps a network's state, and the random numbers', as they are.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.buffers = {name: (x, x.clone()) for name, x in network.named_buffers()}
        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self.random = (
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if cuda else None,
            random.getstate(),
            np.random.get_state(),  # where networks draw from it, they do so globally
        )

    def again(self) -> None:
        """Put buffers and random numbers back, for another pass like the first."""
        with torch.no_grad():
            for name, (buffer, value) in self.buffers.items():
                owner, _, attribute = name.rpartition(".")
                self.network.get_submodule(owner)._buffers[attribute] = buffer
                buffer.copy_(value)
        numbers, cuda, python, numpy = self.random
        torch.set_rng_state(numbers)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def untouched(network: nn.Module) -> Iterator[Untouched]:
    """Context for passes that leave a network as they found it.

    A sharded network's weights are gathered anew before and after; its passes make no graph, since
    they would be part of the step.
    """
    state, sharded = Untouched(network), sharded_parts(network)
    with ExitStack() as stack:
        for part in sharded:
            part.reshard()
            stack.callback(part.reshard)
        if sharded:
            stack.enter_context(torch.no_grad())
        else:
            stack.enter_context(stand_ins(network))
        stack.enter_context(moved_off_zero(network))
        stack.callback(state.again)
        yield state


def sharded_parts(network: nn.Module) -> list[FSDPModule]:
    """Modules whose parameters FSDP2 gathers."""
    return [each for each in network.modules() if isinstance(each, FSDPModule)]


@contextmanager
def stand_ins(network: nn.Module) -> Iterator[None]:
    """Context in which other parameters stand on the memory of a network's own.

    Gradients gather there; what listens to the network's own, such as DDP, hears nothing.
    """
    held = [
        (module, name, x)
        for module in network.modules()
        for name, x in module._parameters.items()
        if x is not None
    ]
    others = {id(x): nn.Parameter(x.detach(), x.requires_grad) for _, _, x in held}
    for module, name, x in held:
        module._parameters[name] = others[id(x)]
    try:
        yield
    finally:
        for module, name, x in held:
            module._parameters[name] = x


@contextmanager
def moved_off_zero(network: nn.Module) -> Iterator[None]:
    """Context in which no weight is all zero: such layers say nothing about what is before them."""
    generator = torch.Generator().manual_seed(0)
    moved = []
    with torch.no_grad():
        for x in network.parameters():
            own = x.to_local() if isinstance(x, DTensor) else x
            if own.is_floating_point() and own.numel() and not own.any():
                fan_in = max(own[0].numel(), 4) if own.ndim > 1 else 16
                noise = torch.randn(own.shape, generator=generator) * fan_in**-0.5
                moved.append(own)
                own.copy_(noise)
    try:
        yield
    finally:
        with torch.no_grad():
            for own in moved:
                own.zero_()


@contextmanager
def in_double_precision(network: nn.Module) -> Iterator[None]:
    """Context in which weights and buffers are double, without autocast."""
    held = [*network.parameters(), *network.buffers()]
    kept = [(x, x.data) for x in held if x.is_floating_point() or x.is_complex()]
    devices = {x.device.type for x in held}
    try:
        with ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            for x, single in kept:
                x.data = single.to(torch.complex128 if x.is_complex() else torch.float64)
            yield
    finally:
        for x, single in kept:
            x.data = single
