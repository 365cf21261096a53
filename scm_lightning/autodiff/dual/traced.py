# SPDX-License-Identifier: Apache-2.0
"""The carrier inside a compiled graph: a pair in place of the tensor.

The compiler follows a dataclass whose functions are ordinary Python, and neither a mode that counts
what it saw nor a tensor that changes its class. The rules are the same. A pair answers as a tensor
does where networks usually ask; where it cannot, the compiler or this class refuses. What it might
lose, the check at the start of every run finds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from scm_lightning.autodiff.dual.carriers import (
    Pair,
    TangentError,
    cast_tangent,
    map_tensors,
    primal_of,
)
from scm_lightning.autodiff.dual.kinds import Kind, is_told_to_write, kind_of, name_of
from scm_lightning.autodiff.dual.rules import RULES, Unfit

_OF_THE_VALUE = frozenset(
    name
    for names in (
        "device dim dtype is_complex is_contiguous is_cuda is_floating_point is_nested is_sparse",
        "layout ndim numel requires_grad shape size stride",
    )
    for name in names.split()
)
"""Attributes that a pair answers as its value does."""


class Traced(Pair):
    """A value and its tangent in place of a tensor."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Handle a call that torch passes here in place of any function that gets a pair."""
        return apply(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        """Properties of the primal, and tensor methods as operations on the pair."""
        if name in _OF_THE_VALUE:
            return getattr(self.primal, name)
        if name in ("mT", "T", "real", "imag"):
            return Traced(getattr(self.primal, name), getattr(self.tangent, name))
        method = getattr(torch.Tensor, name, None)
        if not callable(method):
            raise AttributeError(f"dual numbers have no attribute {name!r}")
        return lambda *args, **kwargs: apply(method, (self, *args), kwargs)

    def __len__(self) -> int:
        return len(self.primal)

    def __lt__(self, other: Any) -> Any:
        return self.primal < primal_of(other)

    def __le__(self, other: Any) -> Any:
        return self.primal <= primal_of(other)

    def __gt__(self, other: Any) -> Any:
        return self.primal > primal_of(other)

    def __ge__(self, other: Any) -> Any:
        return self.primal >= primal_of(other)


def _operator(func: Callable[..., Any], flipped: bool = False) -> Callable[..., Any]:
    if flipped:
        return lambda self, other: apply(func, (other, self), {})
    return lambda self, *other: apply(func, (self, *other), {})


for _name, _func, _flipped in (
    ("__getitem__", torch.Tensor.__getitem__, False),
    ("__neg__", torch.neg, False),
    ("__add__", torch.add, False),
    ("__radd__", torch.add, False),
    ("__sub__", torch.sub, False),
    ("__rsub__", torch.Tensor.__rsub__, False),
    ("__mul__", torch.mul, False),
    ("__rmul__", torch.mul, False),
    ("__truediv__", torch.div, False),
    ("__rtruediv__", torch.Tensor.__rdiv__, False),
    ("__pow__", torch.pow, False),
    ("__rpow__", torch.pow, True),
    ("__mod__", torch.remainder, False),
    ("__rmod__", torch.Tensor.__rmod__, False),
    ("__matmul__", torch.matmul, False),
    ("__rmatmul__", torch.matmul, True),
):
    setattr(Traced, _name, _operator(_func, _flipped))


def apply(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply an operation to arguments with pairs among them.

    Raises:
        TangentError: if the operation works in place, has no forward derivative or loses it.
    """
    found = RULES.get(func)
    told = is_told_to_write(func, args, kwargs)
    if found is not None and not told and found.fits(args, kwargs):
        try:
            out, tangent = found.rule(func, *args, **kwargs)
        except Unfit:
            pass
        else:
            return _joined(out, tangent)
    kind = kind_of(func)
    if kind is Kind.METADATA or kind is Kind.CONSTANT:
        return func(*map_tensors(primal_of, args), **kwargs)
    if told or kind not in (Kind.OPERATION, Kind.FLAGGED):
        raise TangentError(
            f"compiled tangents cannot follow {name_of(func)}; write it out of place"
        )
    return _by_forward_mode(func, args, kwargs)


def _joined(out: Any, tangent: Any) -> Any:
    if tangent is None:
        return out
    if isinstance(out, Tensor):
        return Traced(out, cast_tangent(out, tangent))
    return tuple(_joined(*pair) for pair in zip(out, tangent, strict=True))


def _by_forward_mode(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """One operation through torch's forward mode; its level is closed at once."""

    def enter(x: Any) -> Any:
        if not isinstance(x, Pair):
            return x
        return forward_ad.make_dual(x.primal, x.tangent)  # type: ignore[no-untyped-call]

    def leave(x: Any) -> Any:
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
            return x
        primal, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
        if tangent is None:
            raise TangentError(f"the operation {name_of(func)} lost the tangent")
        return Traced(primal, tangent.detach())

    with forward_ad.dual_level():
        out = func(*map_tensors(enter, args), **map_tensors(enter, kwargs))
        return map_tensors(leave, out)
