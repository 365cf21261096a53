# SPDX-License-Identifier: Apache-2.0
"""Outputs of all modules of a network in one pass: values, and tangents where there are any.

A pass leaves nothing behind: it runs on copies of the weights, of which those that are all zero get
random numbers, since a fresh network gives zero whatever its derivative; buffers, attributes,
random numbers and whether weights are double are put back.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from scm_lightning.autodiff.attributes import Attributes, put_numbers_back
from scm_lightning.autodiff.dual import tangent_of
from scm_lightning.autodiff.dual.carriers import leaves
from scm_lightning.autodiff.dual.forward_mode import differentiable

functorch = torch._C._functorch


class Place(NamedTuple):
    """Place where a number was read.

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
                for part, x in enumerate(filter(differentiable, leaves(out))):
                    place = Place(name, type(module).__name__, calls[name], part)
                    readings[place] = split(x)
            calls[name] += 1

        return hook

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            handle = module.register_forward_hook(listen(name))
            stack.callback(handle.remove)
        yield readings


def place_of(network: Any) -> Place:
    """Place of the output of the network itself."""
    return Place("", type(network).__name__, 0, 0)


def read_whole(f: Any, split: Split, readings: Readings) -> Callable[[Tensor, Tensor], Tensor]:
    """A function whose own output is read too, as that of a scripted network is not by hooks."""

    def call(u: Tensor, t: Tensor) -> Tensor:
        out: Tensor = f(u, t)
        if isinstance(out, Tensor):
            readings.setdefault(place_of(f.network), split(out))
        return out

    return call


class Untouched:
    """State of a network and of the random numbers, kept as they are.

    Its parameters are exchanged for copies, in which gradients gather and into which a forward may
    write: what listens to the network's own, such as DDP, hears nothing. Of those that are all
    zero the copies are not. Sharded parameters stay, and are moved off zero where they are.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.sharded = [each for each in network.modules() if isinstance(each, FSDPModule)]
        for part in self.sharded:
            part.reshard()  # or a part keeps what it gathered
        self.held = [
            (module, name, x)
            for module in network.modules()
            for name, x in module._parameters.items()
            if x is not None
        ]
        self.attributes = None if self.sharded else Attributes(network)
        self.copies = {} if self.sharded else {id(x): _copy(x) for _, _, x in self.held}
        # A gradient that reaches the network's own goes through a reference that is not seen here.
        self.gradients = [] if self.sharded else [(x, x.grad) for _, _, x in self.held]
        for module, name, x in self.held:
            module._parameters[name] = self.copies.get(id(x), x)
        self.zeros = [own for _, _, x in self.held if _is_zero(own := _local(x))]
        self.buffers = {name: (x, x.clone()) for name, x in network.named_buffers()}
        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self.random = (
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if cuda else None,
            random.getstate(),
            np.random.get_state(),  # where networks draw from it, they do so globally
        )

    def again(self) -> None:
        """Put weights, buffers and random numbers back, for another pass like the first."""
        generator = torch.Generator().manual_seed(0)
        if self.attributes is not None:
            self.attributes.put_back(self.copies)
        with torch.no_grad():
            for x, _ in self.gradients:
                x.grad = None
            for _, _, x in self.held:
                if (copy := self.copies.get(id(x))) is not None:
                    copy.copy_(x)
                    _move_off_zero(copy, generator)
            if self.sharded:
                for own in self.zeros:
                    _move_off_zero(own, generator)
            for name, (buffer, value) in self.buffers.items():
                owner, _, attribute = name.rpartition(".")
                self.network.get_submodule(owner)._buffers[attribute] = buffer
                put_numbers_back(buffer, value)
        self._draw_again()

    def _draw_again(self) -> None:
        numbers, cuda, python, numpy = self.random
        torch.set_rng_state(numbers)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        random.setstate(python)
        np.random.set_state(numpy)

    def put_back(self) -> None:
        """Put everything back."""
        self.again()
        for module, name, x in self.held:
            module._parameters[name] = x
        if self.attributes is not None:
            self.attributes.put_back({})
        for x, gradient in self.gradients:
            x.grad = gradient
        if self.sharded:
            with torch.no_grad():
                for own in self.zeros:
                    own.zero_()
            for part in self.sharded:
                part.reshard()


def _copy(x: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(x.detach().clone(), x.requires_grad)


def _local(x: Tensor) -> Tensor:
    """A parameter's memory in this process."""
    return x.to_local() if isinstance(x, DTensor) else x


def _is_zero(x: Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 0 and not x.any()


def _move_off_zero(x: Tensor, generator: torch.Generator) -> None:
    """Fill a weight that is all zero: it would hide everything before it."""
    if _is_zero(x):
        fan_in = max(x[0].numel(), 4) if x.ndim > 1 else 16
        x.copy_(torch.randn(x.shape, generator=generator) * fan_in**-0.5)


@contextmanager
def untouched(network: nn.Module) -> Iterator[Untouched]:
    """Context for passes that leave a network as they found it.

    The passes of a sharded network make no graph, since it would be part of the step.
    """
    state = Untouched(network)
    with torch.no_grad() if state.sharded else nullcontext():
        try:
            state.again()
            yield state
        finally:
            state.put_back()


def read_again(split: Split, state: Untouched) -> AbstractContextManager[Readings]:
    """Put the network's state back, and read another pass."""
    state.again()
    return read(state.network, split)
