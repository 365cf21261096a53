# SPDX-License-Identifier: Apache-2.0
r"""Two carriers of a tensor and its derivative, and the view that rules have of them.

    f(x + e tx) = f(x) + e f'(x) tx

`Dual` is the tensor itself, with its derivative as an attribute: whatever code asks, it is a
tensor, and autograd records it like any other. `Traced` is a pair in place of the tensor, for
torch.compile, which follows pairs but no change of a tensor's class.

Rules never tell them apart: they ask `primal_of` and `tangent_of`, and return (value, tangent).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scm_lightning.autodiff.dual.kinds import Kind, kind_of, name_of


class TangentError(ValueError):
    """An operation that the tangent cannot pass."""


class _KindOfTensor(type(Tensor)):  # type: ignore[misc]
    """Metaclass that makes `type(x) == torch.Tensor` true as for a tensor without a derivative."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is Tensor

    __hash__ = type.__hash__


class Dual(Tensor, metaclass=_KindOfTensor):
    """A tensor with a derivative, made by `DualNumbers.join`.

    Outside of the pass that made it, it is a tensor like any other, and the first use makes it one.

    Attributes:
        tangent: the derivative, without a graph; of the same shape and type.
        level: the pass that the tangent belongs to.
    """

    tangent: Tensor
    level: Any

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Handle a call of torch's outside of a pass: after it, or in another thread."""
        with torch._C.DisableTorchFunctionSubclass():
            for x in leaves((args, kwargs)):
                strip_stale(x)
                if type(x) is Dual and kind_of(func) is not Kind.METADATA:
                    raise TangentError(
                        f"the tangent cannot follow {name_of(func)} in another thread, or where "
                        "torch's function modes are off"
                    )
            return func(*args, **(kwargs or {}))


def strip(x: Tensor) -> Tensor:
    """Make a tensor with a tangent an ordinary one again."""
    del x.tangent, x.level  # type: ignore[attr-defined]
    x.__class__ = Tensor
    return x


def strip_stale(x: Tensor) -> None:
    """Make a tensor that an earlier pass left behind an ordinary one."""
    if type(x) is Dual and not x.level.is_open:
        strip(x)


@dataclass(eq=False, repr=False)
class Pair:
    """A value and its tangent in place of a tensor; `Traced` makes it behave like a tensor.

    Attributes:
        primal: the value, with its reverse graph.
        tangent: its derivative, without one; of the same shape and type.
    """

    primal: Tensor
    tangent: Tensor


class _NoGraph:
    """Context like `torch.no_grad`, at a third of its time."""

    __slots__ = ("was",)

    def __enter__(self) -> None:
        self.was = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)

    def __exit__(self, *error: Any) -> None:
        torch._C._set_grad_enabled(self.was)


def no_graph() -> Any:
    """Context without a graph, entered for every operation's tangent; the compiler gets torch's."""
    return torch.no_grad() if torch.compiler.is_compiling() else _NoGraph()


def is_dual(x: Any) -> bool:
    """Tell whether `x` carries a tangent."""
    return type(x) is Dual or isinstance(x, Pair)


def primal_of(x: Any) -> Any:
    """The value behind a carrier; anything else as it is."""
    return x.primal if isinstance(x, Pair) else x


def plain(x: Any) -> Tensor:
    """The value behind a carrier as an ordinary tensor: the same one, or what a pair holds."""
    return strip(x) if type(x) is Dual else primal_of(x)


def tangent_of(x: Any) -> Tensor | None:
    """The tangent of a carrier; None for a constant."""
    return x.tangent if is_dual(x) else None


def cast_tangent(out: Tensor, tangent: Tensor) -> Tensor:
    """A tangent in the shape and type of its value."""
    if tangent.shape != out.shape:
        tangent = tangent.expand(out.shape)
    return tangent if tangent.dtype == out.dtype else tangent.to(out.dtype)


def aligned_tangent(x: Any) -> Tensor:
    """The tangent of a carrier, in the memory layout of its value from now on.

    Called before the first view of either is made, it lets both have the same views: which of the
    tangents share memory, and where an operation copies, is then as it is for the values.
    """
    value: Tensor = primal_of(x)
    tangent: Tensor = x.tangent
    if tangent.layout is not torch.strided or value.layout is not torch.strided:
        return tangent
    conjugated = value.dtype.is_complex and tangent.is_conj() > value.is_conj()
    if tangent.stride() != value.stride() or conjugated:
        x.tangent = tangent = laid_out_as(value, tangent)
    return tangent


def laid_out_as(value: Tensor, tangent: Tensor) -> Tensor:
    """A copy of a tangent in the memory layout of its value; without layout on expanded axes."""
    if any(s == 0 and n > 1 for s, n in zip(value.stride(), value.shape, strict=True)):
        return tangent.contiguous().resolve_conj()
    return torch.empty_strided(
        value.shape, value.stride(), dtype=tangent.dtype, device=tangent.device
    ).copy_(tangent)


def leaves(tree: Any) -> Iterator[Tensor]:
    """Tensors among nested arguments or results."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for each in tree:
            yield from leaves(each)
    elif isinstance(tree, dict):
        yield from leaves(list(tree.values()))


def map_tensors(f: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `f` to the leaves of nested tuples, lists and dictionaries."""
    if isinstance(tree, (tuple, list)) and not isinstance(tree, torch.Size):
        made = [map_tensors(f, each) for each in tree]
        if hasattr(tree, "_make"):  # a named tuple
            return tree._make(made)
        return type(tree)(made)
    if isinstance(tree, dict):
        return {key: map_tensors(f, value) for key, value in tree.items()}
    return f(tree)
