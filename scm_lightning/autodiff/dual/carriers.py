# SPDX-License-Identifier: Apache-2.0
r"""Two carriers of a tensor and its derivative, and what rules see of them.

    f(x + e tx) = f(x) + e f'(x) tx

`Dual` is the tensor itself, with its derivative as an attribute: whatever code asks, it is a tensor,
and what autograd records of it is what it records of any other. `Traced` is a pair in the place of
the tensor, for torch.compile, which follows pairs and no change of a tensor's class.

Rules never tell them apart: they ask `primal_of` and `tangent_of`, and return (value, tangent).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class TangentError(ValueError):
    """An operation that the tangent cannot pass."""


class Dual(Tensor):
    """A tensor with a derivative, made by `DualNumbers.join`.

    Outside of the pass that made it, it is a tensor like any other.

    Attributes:
        tangent: the derivative, without a graph; of the same shape and type.
        level: the pass that the tangent belongs to.
    """

    tangent: Tensor
    level: object

    # A pass sees every call by itself; without one the tangent means nothing. As of parameters.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


@dataclass(eq=False, repr=False)
class Pair:
    """A value and its tangent in the place of a tensor; `Traced` gives it a tensor's manners.

    Attributes:
        primal: the value, with its reverse graph.
        tangent: its derivative, without one; of the same shape and type.
    """

    primal: Tensor
    tangent: Tensor


class _NoGraph:
    """What `torch.no_grad` does, at a third of its time."""

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
    """Whether `x` carries a tangent."""
    return type(x) is Dual or isinstance(x, Pair)


def primal_of(x: Any) -> Any:
    """The value behind a carrier; anything else as it is."""
    return x.primal if isinstance(x, Pair) else x


def tangent_of(x: Any) -> Tensor | None:
    """The tangent of a carrier; None for a constant."""
    return x.tangent if is_dual(x) else None


def cast_tangent(out: Tensor, tangent: Tensor) -> Tensor:
    """A tangent in the shape and type of its value."""
    if tangent.shape != out.shape:
        tangent = tangent.expand(out.shape)
    return tangent if tangent.dtype == out.dtype else tangent.to(out.dtype)


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
