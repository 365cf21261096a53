# SPDX-License-Identifier: Apache-2.0
"""Torch's own list of operators, as calls: the ways to spell each, and its sample inputs."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from tangent_calls import floating, fresh
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

CAP = 60
"""Samples of an operator and dtype; of more, every n-th is taken."""
FEW = 4
"""Samples of the ways that differ from another in spelling only."""
DTYPES = (torch.float64, torch.complex128)


@lru_cache
def all_operators() -> list[Any]:
    """`op_db`, with the side effects of its import undone: it forbids to set backend flags."""
    flag = "__allow_nonbracketed_mutation_flag"
    allowed = getattr(torch.backends, flag)
    scripted = torch._C.ScriptFunction.__call__, torch._C.ScriptMethod.__call__
    from torch.testing._internal.common_methods_invocations import op_db

    setattr(torch.backends, flag, allowed)
    torch._C.ScriptFunction.__call__, torch._C.ScriptMethod.__call__ = scripted
    return op_db


def full_name(op: Any) -> str:
    return f"{op.name}:{op.variant_test_name}" if op.variant_test_name else op.name


@dataclass(frozen=True)
class Way:
    """One spelling of an operator: `call(input, *args, **kwargs)`, for at most `most` samples."""

    name: str
    call: Callable[..., object]
    most: int = CAP


@lru_cache
def signatures() -> dict[Any, inspect.Signature]:
    """Parameters of torch's functions, as its table of overrides lists them."""
    table = torch.overrides.get_testing_overrides()
    return {function: inspect.signature(stand_in) for function, stand_in in table.items()}


def by_keywords(function: Callable[..., object]) -> Callable[..., object] | None:
    """The call with every argument named, as far as its parameters have names."""
    try:
        signature = signatures().get(function) or inspect.signature(function)
    except (ValueError, TypeError):
        return None
    if getattr(function, "__name__", "<lambda>") == "<lambda>" or any(
        each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        for each in signature.parameters.values()
    ):
        return None

    def call(*args: object, **kwargs: object) -> object:
        return function(**signature.bind_partial(*args).arguments, **kwargs)

    return call


def keeping_an_alias(inplace: Callable[..., object]) -> Callable[..., object]:
    """The in-place call, with a view that was made before the write among the results."""

    def call(first: Tensor, *args: object, **kwargs: object) -> object:
        alias = first[...]
        return inplace(first, *args, **kwargs), alias

    return call


def through_a_view(inplace: Callable[..., object]) -> Callable[..., object]:
    """The in-place call on a part of a larger tensor, which is the result."""

    def call(first: Tensor, *args: object, **kwargs: object) -> object:
        whole = torch.stack([first, first])
        inplace(whole[1], *args, **kwargs)
        return whole

    return call


def into_out(function: Callable[..., object]) -> Callable[..., object]:
    """The call with `out=`: torch takes it only where no gradient is asked for."""

    def call(*args: object, **kwargs: object) -> object:
        with torch.no_grad():
            found = function(*args, **kwargs)
            many = isinstance(found, tuple)
            made = [
                torch.empty(each.shape, dtype=each.dtype) for each in (found if many else (found,))
            ]
            function(*args, **kwargs, out=tuple(made) if many else made[0])
        return made

    return call


def ways(op: Any) -> Iterator[Way]:
    """Every spelling that torch lists, each callable once."""
    wrap = op.gradcheck_wrapper
    plain = op.op

    def wrapped(function: Callable[..., object]) -> Callable[..., object]:
        if wrap.__name__ == "<lambda>":
            return function
        return lambda *args, **kwargs: wrap(function, *args, **kwargs)

    yield Way("function", wrapped(plain))
    if op.method_variant:
        yield Way("method", wrapped(op.method_variant))
    if op.inplace_variant:
        yield Way("in-place", op.inplace_variant)
        yield Way("in-place, alias", keeping_an_alias(op.inplace_variant), FEW)
        yield Way("in-place, of a view", through_a_view(op.inplace_variant), FEW)
    if op.operator_variant:
        yield Way("operator", op.operator_variant)
    if op.inplace_operator_variant:
        yield Way("in-place operator", op.inplace_operator_variant, FEW)
    named = by_keywords(plain)
    if named:
        yield Way("keywords", named, FEW)
    if op.supports_out:
        yield Way("out=", into_out(plain), FEW)
    for alias in op.aliases:
        yield Way(f"alias {alias.name}", alias.op, FEW)
        if alias.method_variant:
            yield Way(f"alias {alias.name}, method", alias.method_variant, FEW)
        if alias.inplace_variant:
            yield Way(f"alias {alias.name}, in-place", alias.inplace_variant, FEW)


@dataclass(frozen=True)
class Sample:
    """A sample input: its leaves, and what rebuilds the arguments from others in their place."""

    leaves: list[Tensor]
    flat: list[object]
    places: list[int]
    spec: Any
    process: Callable[[object], object]

    def bound(self, function: Callable[..., object]) -> Callable[..., object]:
        """The function of the leaves alone; other tensors are copied, for functions that write."""

        def call(*leaves: Tensor) -> object:
            flat = [fresh(each) if floating(each) else each for each in self.flat]
            for place, leaf in zip(self.places, leaves, strict=True):
                flat[place] = leaf
            first, args, kwargs = tree_unflatten(flat, self.spec)
            return self.process(function(first, *args, **kwargs))

        return call


def thinned(items: list[Any], most: int) -> list[Any]:
    """Every n-th, so that at most so many are left."""
    return items[:: max(1, -(-len(items) // most))]


def samples(op: Any, dtype: torch.dtype, most: int = CAP) -> Iterator[Sample]:
    """The operator's sample inputs that hold a float or complex tensor to be varied."""
    torch.default_generator.manual_seed(0)
    differentiable = op.supports_autograd or op.supports_forward_ad
    given = list(op.sample_inputs("cpu", dtype, requires_grad=differentiable))
    for sample in thinned(given, most):
        flat, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        places = [
            place
            for place, each in enumerate(flat)
            if floating(each) and (each.requires_grad or not differentiable)
        ]
        if places:
            leaves = [flat[place].detach() for place in places]
            yield Sample(leaves, flat, places, spec, sample.output_process_fn_grad)
