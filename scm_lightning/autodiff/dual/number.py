# SPDX-License-Identifier: Apache-2.0
r"""Dual numbers: a tensor and its derivative, carried through a network in one pass.

    f(x + e tx) = f(x) + e f'(x) tx

The primal operation runs as always, and autograd records it; the tangent operation runs under
no_grad on the same values. One pass gives the network's output with its reverse graph and the
derivative without one: nothing of the tangent is kept for the backward pass, and constant weights
cost nothing, while torch's own forward mode multiplies their zero tangents out.

An operation with a rule uses it; any other goes, alone, through torch's forward mode. An operation
that loses the tangent raises: a derivative that is silently zero is this field's worst mistake.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}
"""Rules by the name of the operation: `torch.add`, `Tensor.add` and `+` share one name each."""
fallback_calls: Counter[str] = Counter()
"""How often an operation without a rule went through torch's forward mode."""

_OF_THE_VALUE = frozenset(
    [
        "device",
        "dim",
        "dtype",
        "is_contiguous",
        "is_cuda",
        "is_floating_point",
        "is_sparse",
        "layout",
        "ndim",
        "numel",
        "requires_grad",
        "shape",
        "size",
        "stride",
    ]
)
"""Attributes that a dual number answers as its value does."""


class TangentError(ValueError):
    """An operation that the tangent cannot pass."""


@dataclass(eq=False, repr=False)  # a dataclass, so that FSDP finds the tensors inside
class Dual:
    """A tensor and its tangent, in the place of the tensor.

    Attributes:
        primal: the value, with its reverse graph.
        tangent: its derivative, without one; of the same shape and type.
    """

    primal: Tensor
    tangent: Tensor

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by torch in the place of any function that gets a dual number."""
        return apply(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        """Properties of the primal, and tensor methods as operations on the dual number."""
        if name in _OF_THE_VALUE:
            return getattr(self.primal, name)
        if name in ("T", "mT"):
            return apply(torch.Tensor.transpose, (self, -2, -1), {})
        method = getattr(torch.Tensor, name, None)
        if not callable(method):
            raise AttributeError(f"dual numbers have no attribute {name!r}")
        return lambda *args, **kwargs: apply(method, (self, *args), kwargs)

    def __len__(self) -> int:
        return len(self.primal)

    def __getitem__(self, key: Any) -> Any:
        return apply(torch.Tensor.__getitem__, (self, key), {})

    def __neg__(self) -> Any:
        return apply(torch.neg, (self,), {})

    def __add__(self, other: Any) -> Any:
        return apply(torch.add, (self, other), {})

    def __radd__(self, other: Any) -> Any:
        return apply(torch.add, (self, other), {})

    def __sub__(self, other: Any) -> Any:
        return apply(torch.sub, (self, other), {})

    def __rsub__(self, other: Any) -> Any:
        return apply(torch.add, (apply(torch.neg, (self,), {}), other), {})

    def __mul__(self, other: Any) -> Any:
        return apply(torch.mul, (self, other), {})

    def __rmul__(self, other: Any) -> Any:
        return apply(torch.mul, (self, other), {})

    def __truediv__(self, other: Any) -> Any:
        return apply(torch.div, (self, other), {})

    def __rtruediv__(self, other: Any) -> Any:
        return apply(torch.mul, (apply(torch.reciprocal, (self,), {}), other), {})

    def __pow__(self, exponent: Any) -> Any:
        return apply(torch.pow, (self, exponent), {})

    def __rpow__(self, base: Any) -> Any:
        return apply(torch.pow, (base, self), {})

    def __matmul__(self, other: Any) -> Any:
        return apply(torch.matmul, (self, other), {})

    def __rmatmul__(self, other: Any) -> Any:
        return apply(torch.matmul, (other, self), {})

    def __lt__(self, other: Any) -> Any:
        return self.primal < primal_of(other)

    def __le__(self, other: Any) -> Any:
        return self.primal <= primal_of(other)

    def __gt__(self, other: Any) -> Any:
        return self.primal > primal_of(other)

    def __ge__(self, other: Any) -> Any:
        return self.primal >= primal_of(other)


def is_dual(x: Any) -> bool:
    """Whether `x` is a dual number."""
    return type(x) is Dual


def primal_of(x: Any) -> Any:
    """The value of a dual number; anything else as it is."""
    return x.primal if is_dual(x) else x


def tangent_of(x: Any) -> Tensor | None:
    """The tangent of a dual number; None for a constant."""
    return x.tangent if is_dual(x) else None


def dual(primal: Tensor, tangent: Tensor) -> Dual:
    """Join a value and its tangent, expanded and cast to match."""
    if tangent.shape != primal.shape:
        tangent = tangent.expand(primal.shape)
    return Dual(primal, tangent.to(primal.dtype))


def apply(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply an operation to arguments among which there are dual numbers.

    Raises:
        TangentError: if the operation works in place, has no forward derivative or loses it.
    """
    name = func.__name__
    rule = RULES.get(name)
    if rule is not None:
        return rule(func, *args, **kwargs)
    if name.endswith("_") and not name.endswith("__"):
        raise TangentError(
            f"the tangent cannot follow the in-place operation {name}; write it out of place, or "
            "use the tangent method finite_difference"
        )
    return _by_forward_mode(func, args, kwargs)


def _by_forward_mode(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """One operation through torch's forward mode; its level is closed at once."""
    if not torch.compiler.is_compiling():
        fallback_calls[func.__name__] += 1

    def enter(x: Any) -> Any:
        if not is_dual(x):
            return x
        return forward_ad.make_dual(x.primal, x.tangent)  # type: ignore[no-untyped-call]

    def leave(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        primal, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
        if tangent is None:
            raise TangentError(
                f"the operation {func.__name__} lost the tangent: it has no forward derivative; "
                "use the tangent method finite_difference, or write it with torch operations"
            )
        return dual(primal, tangent.detach())

    with forward_ad.dual_level():
        try:
            out = func(*_map(enter, args), **_map(enter, kwargs))
        except (NotImplementedError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise TangentError(
                f"the operation {func.__name__} has no forward derivative ({reason}); use the "
                "tangent method finite_difference, or write it with other operations"
            ) from error
        return _map(leave, out)


def _map(f: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `f` to the leaves of nested tuples, lists and dictionaries."""
    if isinstance(tree, dict):
        return {key: _map(f, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return type(tree)(_map(f, each) for each in tree)
    return f(tree)
