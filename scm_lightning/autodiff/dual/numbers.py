# SPDX-License-Identifier: Apache-2.0
r"""Dual numbers: a network's value and its derivative in one pass, or a refusal.

Inside `DualNumbers` every call of torch passes through here. The primal operation runs as always
and autograd records it; the tangent operation runs under no_grad on the same values. One pass gives
the network's output with its reverse graph and the derivative without one: nothing of the tangent
is kept for the backward pass, and constant weights cost nothing, while torch's own forward mode
multiplies their zero tangents out.

An operation with a rule uses it; any other goes, alone, through torch's forward mode. Whatever
would lose the tangent raises: a derivative that is silently zero is this field's worst mistake.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from scm_lightning.autodiff.dual.carriers import (
    Dual,
    TangentError,
    aligned_tangent,
    cast_tangent,
    leaves,
    strip,
)
from scm_lightning.autodiff.dual.doors import watched_doors
from scm_lightning.autodiff.dual.forward_mode import by_forward_mode
from scm_lightning.autodiff.dual.kinds import KINDS, Kind, is_told_to_write, kind_of, name_of
from scm_lightning.autodiff.dual.rules import RULES, Unfit
from scm_lightning.autodiff.dual.writes import Writes

_functorch_is_active = torch._C._are_functorch_transforms_active


class DualNumbers(TorchFunctionMode):
    """A pass in which tensors carry tangents.

        with DualNumbers() as level:
            out = network(level.join(x, tx))
            F, dF = level.part(out)

    Compiled functions run eagerly meanwhile, since the compiler sees no tangents. To a pass inside
    another, what has a tangent of the other is constant; tangents of both do not meet.

    Attributes:
        is_open: whether the pass is under way.
        is_nested: whether another pass of this thread is too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes = Writes(self)
        self.is_open = self.is_nested = False

    def __enter__(self) -> "DualNumbers":
        with ExitStack() as stack:
            stack.callback(self.writes.forget)
            stack.enter_context(watched_doors(self))
            stack.enter_context(saved_tensors_hooks(_pack, _unpack))
            super().__enter__()  # type: ignore[no-untyped-call]
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._open.close()

    def join(self, value: Tensor, tangent: Tensor) -> Tensor:
        """Give a tensor a tangent.

        Args:
            value: the tensor; itself afterwards the one with a tangent.
            tangent: derivative without a graph, broadcast and cast to match. Same shape.
        """
        with torch._C.DisableTorchFunction():
            self.mark(value, cast_tangent(value, tangent.detach()).clone())
            aligned_tangent(value)
            return value

    def part(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take value and tangent apart; the tangent of a constant is None."""
        with torch._C.DisableTorchFunction():
            if self.writes.storages:
                self.writes.notice(x)
            if not self.carries(x):
                return x, None
            tangent = x.tangent  # type: ignore[attr-defined]
            return strip(x), tangent

    def mark(self, value: Any, tangent: Tensor) -> Any:
        """Enter a tangent into a tensor of ours."""
        if type(value) is not Tensor:
            self._check_carrier(value)
        value.__class__ = Dual
        value.tangent, value.level = tangent, self
        return value

    def _check_carrier(self, value: Tensor) -> None:
        kind = type(value)
        if kind is Dual and value.level is not self and value.level.is_open:  # type: ignore[attr-defined]
            raise TangentError(
                "a tensor with a tangent cannot get one in a pass inside the pass: the tangents "
                "would mix; give the inner pass x.detach()"
            )
        if kind is not Dual and not issubclass(kind, torch.nn.Parameter):
            raise TangentError(f"a {kind.__name__} carries no tangent, only a torch.Tensor does")

    def carries(self, x: Any) -> bool:
        """Tell whether `x` has a tangent of this pass; one of an earlier pass is taken off."""
        if type(x) is not Dual:
            return False
        if x.level is not self:
            if not x.level.is_open:
                strip(x)
            return False
        return True

    def any_dual(self, args: Any) -> bool:
        """Tell whether nested arguments contain a tensor with a tangent."""
        found = False  # all are looked at: rules take every dual number for one of this pass
        for x in args:
            if type(x) is Dual:
                found |= self.carries(x)
            elif isinstance(x, (tuple, list)):
                found |= self.any_dual(x)
        return found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Handle a call that torch passes here in place of any of its functions."""
        kwargs = kwargs or {}
        if types and (foreign := _foreign(tuple(types))):
            self._check_foreign(func, foreign, args, kwargs)
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            kind = KINDS.get(func) or kind_of(func)
            if kind is Kind.METADATA and not (kwargs and _has_out(kwargs)):
                return func(*args, **kwargs)
            if self.is_nested:
                self._check_levels(func, args, kwargs)
            if self.writes.storages:
                self.writes.notice((args, kwargs))
            if _functorch_is_active():  # its wrappers hide what they hold
                raise TangentError(
                    f"the tangent cannot follow {name_of(func)} inside a transform of torch.func "
                    "within the network"
                )
            found_dual = self.any_dual(args)
            if kwargs:
                found_dual |= self.any_dual(kwargs.values())
            if not found_dual:
                return func(*args, **kwargs)
            if kind is Kind.FLAGGED:
                written = is_told_to_write(func, args, kwargs)
                kind = Kind.IN_PLACE if written else Kind.OPERATION
            if kind is Kind.OPERATION and not (kwargs and _has_out(kwargs)):
                found = RULES.get(func)
                if found is not None and found.fits(args, kwargs):
                    try:
                        return self.joined(*found.rule(func, *args, **kwargs))
                    except Unfit:
                        pass
                return self.joined(*by_forward_mode(func, args, kwargs))
            return self.special(func, kind, args, kwargs)

    def _check_foreign(self, func: Any, names: str, args: Any, kwargs: Any) -> None:
        """Refuse a tangent in a call that a tensor class of another library handles."""
        if kind_of(func) is not Kind.METADATA and any(map(self.carries, leaves((args, kwargs)))):
            raise TangentError(
                f"the tangent cannot follow {name_of(func)} of {names}, which handles torch's "
                "functions itself"
            )

    def _check_levels(self, func: Any, args: Any, kwargs: Any) -> None:
        """Refuse an operation in which tangents of two passes meet."""
        duals = [x for x in leaves((args, kwargs)) if type(x) is Dual]
        if len({x.level for x in duals if x.level.is_open}) > 1:
            raise TangentError(
                f"in {name_of(func)} tangents of a pass meet those of a pass inside it; give the "
                "inner pass x.detach()"
            )

    def special(
        self, func: Callable[..., Any], kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Apply a function that is not an operation to arguments with tangents.

        Raises:
            TangentError: if the tangent cannot pass it.
        """
        with_out = _has_out(kwargs)
        if kind is Kind.CONSTANT and not with_out and not self._reads_numbers(args, kwargs):
            return func(*args, **kwargs)
        if kind is Kind.TEXT:
            return func(args[0].detach(), *args[1:], **kwargs)
        if kind is Kind.ITERATOR:
            return iter(self.__torch_function__(Tensor.unbind, (), args))
        if kind in (Kind.REFUSED, Kind.CONSTANT) or with_out:
            raise TangentError(
                f"the tangent cannot follow {name_of(func)}{' with out=' if with_out else ''}, "
                "which takes the numbers out of its sight; pass x.detach() where a constant is "
                "meant"
            )
        return self.writes.write(func, args, kwargs)

    def _reads_numbers(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Tell whether a tensor is made of a list of tensors, number by number."""
        given = (*args, *kwargs.values())
        return any(isinstance(x, (tuple, list)) and self.any_dual(x) for x in given)

    def joined(self, out: Any, tangent: Any) -> Any:
        """Results of an operation with their tangents; what has none stays as it is."""
        if isinstance(out, Tensor):
            if tangent is None or type(out) is Dual:  # an operation that returned its argument
                return out
            return self.mark(out, cast_tangent(out, tangent))
        if isinstance(out, (tuple, list)) and tangent is not None:
            made = [self.joined(*pair) for pair in zip(out, tangent, strict=True)]
            return out._make(made) if hasattr(out, "_make") else type(out)(made)
        if isinstance(out, dict) and tangent is not None:
            return {key: self.joined(value, tangent[key]) for key, value in out.items()}
        return out


@cache
def _foreign(types: tuple[type, ...]) -> str:
    """Names of tensor classes that handle torch's functions themselves, and are not ours."""
    usual = {_handler(Tensor), torch._C._disabled_torch_function_impl}
    return ", ".join(
        each.__name__ for each in types if each is not Dual and _handler(each) not in usual
    )


def _handler(kind: Any) -> Any:
    return getattr(kind.__torch_function__, "__func__", kind.__torch_function__)


def _has_out(kwargs: dict[str, Any]) -> bool:
    return kwargs.get("out") is not None


def _pack(x: Tensor) -> tuple[Tensor, int]:
    """Reduce a tensor to what autograd keeps: no tangent, and no cycle with its own graph."""
    with torch._C.DisableTorchFunction():
        is_itself = type(x) is not Dual and x.is_leaf
        return x if is_itself else x.detach(), x._version


def _unpack(kept: tuple[Tensor, int]) -> Tensor:
    """The tensor that was kept; autograd's own check of its version, which hooks switch off."""
    x, version = kept
    if x._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: a tensor of shape {tuple(x.shape)} is at version {x._version}; expected "
            f"version {version} instead"
        )
    return x
