# SPDX-License-Identifier: Apache-2.0
r"""Dual numbers: a network's value and its derivative in one pass, or a refusal.

Inside `DualNumbers` every call of torch comes by here. The primal operation runs as always, and
autograd records it; the tangent operation runs under no_grad on the same values. One pass gives the
network's output with its reverse graph and the derivative without one: nothing of the tangent is
kept for the backward pass, and constant weights cost nothing, while torch's own forward mode
multiplies their zero tangents out.

An operation with a rule uses it; any other goes, alone, through torch's forward mode. Whatever
would lose the tangent raises: a derivative that is silently zero is this field's worst mistake.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from scm_lightning.autodiff.dual.carriers import Dual, TangentError, cast_tangent
from scm_lightning.autodiff.dual.doors import watched_doors
from scm_lightning.autodiff.dual.forward_mode import by_forward_mode
from scm_lightning.autodiff.dual.kinds import KINDS, Kind, kind_of, name_of
from scm_lightning.autodiff.dual.rules import RULES, Unfit
from scm_lightning.autodiff.dual.writes import Writes

_functorch_is_active = torch._C._are_functorch_transforms_active


class DualNumbers(TorchFunctionMode):
    """A pass in which tensors carry tangents.

        with DualNumbers() as level:
            out = network(level.join(x, tx))
            F, dF = level.part(out)

    Compiled functions run eagerly meanwhile, since the compiler sees no tangents.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes = Writes(self)

    def __enter__(self) -> "DualNumbers":
        self._open = ExitStack()
        self._open.enter_context(torch.compiler.set_stance("force_eager"))
        self._open.enter_context(watched_doors(self))
        self._open.enter_context(saved_tensors_hooks(_pack, _unpack))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._open.close()
        self.writes.forget()

    def join(self, value: Tensor, tangent: Tensor) -> Tensor:
        """Give a tensor a tangent.

        Args:
            value: the tensor; itself afterwards the one with a tangent.
            tangent: derivative without a graph, broadcast and cast to match. Same shape.
        """
        with torch._C.DisableTorchFunction():
            return self.mark(value, cast_tangent(value, tangent.detach()).clone())

    def part(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take value and tangent apart; the tangent of a constant is None."""
        if self.writes.storages:
            self.writes.notice(x)
        if not self.carries(x):
            return x, None
        tangent = x.tangent  # type: ignore[attr-defined]
        return strip(x), tangent

    def mark(self, value: Any, tangent: Tensor) -> Any:
        """Enter a tangent into a tensor of ours."""
        value.__class__ = Dual
        value.tangent, value.level = tangent, self
        return value

    def carries(self, x: Any) -> bool:
        """Whether `x` has a tangent of this pass; one of another pass is taken off."""
        if type(x) is not Dual:
            return False
        if x.level is not self:
            strip(x)
            return False
        return True

    def any_dual(self, args: Any) -> bool:
        """Whether there is a tensor with a tangent among nested arguments."""
        for x in args:
            kind = type(x)
            if kind is Dual:
                if self.carries(x):
                    return True
            elif kind is not Tensor and isinstance(x, (tuple, list)) and self.any_dual(x):
                return True
        return False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by torch in the place of any of its functions."""
        kwargs = kwargs or {}
        if KINDS.get(func) is Kind.METADATA:
            return func(*args, **kwargs)
        for each in types:  # mostly none: torch leaves out what does not intervene itself
            if each is not Tensor and each is not Dual:
                with torch._C.DisableTorchFunctionSubclass():
                    return self.apply(func, args, kwargs)
        return self.apply(func, args, kwargs)

    def apply(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Apply a function of torch."""
        kind = KINDS.get(func) or kind_of(func)
        if kind is Kind.METADATA:
            return func(*args, **kwargs)
        if self.writes.storages:
            self.writes.notice((args, kwargs))
        if _functorch_is_active():  # its wrappers hide what they hold
            raise TangentError(
                f"the tangent cannot follow {name_of(func)} inside a transform of torch.func "
                "within the network"
            )
        if not (self.any_dual(args) or (kwargs and self.any_dual(kwargs.values()))):
            return func(*args, **kwargs)
        if kind is Kind.OPERATION and not (kwargs and _writes(kwargs)):
            found = RULES.get(func)
            if found is not None and found.fits(args, kwargs):
                try:
                    out, tangent = found.rule(func, *args, **kwargs)
                except Unfit:
                    pass
                else:
                    return self.joined(out, tangent)
            return self.joined(*by_forward_mode(func, args, kwargs))
        return self.special(func, kind, args, kwargs)

    def special(
        self, func: Callable[..., Any], kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Apply a function that is no operation to arguments among which there are tangents.

        Raises:
            TangentError: if the tangent cannot pass it.
        """
        if kind is Kind.CONSTANT:
            return func(*args, **kwargs)
        if kind is Kind.TEXT:
            return func(args[0].detach(), *args[1:], **kwargs)
        if kind is Kind.ITERATOR:
            return iter(self.__torch_function__(Tensor.unbind, (), args))
        with_out = kwargs.get("out") is not None
        if kind is Kind.REFUSED or with_out:
            raise TangentError(
                f"the tangent cannot follow {name_of(func)}{' with out=' if with_out else ''}, "
                "which takes the numbers out of its sight; pass x.detach() where a constant is "
                "meant"
            )
        return self.writes.write(func, args, kwargs)

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


def _writes(kwargs: dict[str, Any]) -> bool:
    return kwargs.get("out") is not None or bool(kwargs.get("inplace"))


def strip(x: Tensor) -> Tensor:
    """Make a tensor with a tangent an ordinary one again."""
    del x.tangent, x.level  # type: ignore[attr-defined]
    x.__class__ = Tensor
    return x


def _pack(x: Tensor) -> Any:
    """What autograd keeps of a tensor: not its tangent, and no cycle with its own graph."""
    if type(x) is not Dual and x.is_leaf:
        return x
    return x.detach(), x._version


def _unpack(kept: Any) -> Tensor:
    """The tensor that was kept; autograd's own check of its version, which hooks switch off."""
    if isinstance(kept, Tensor):
        return kept
    x: Tensor = kept[0]
    if x._version != kept[1]:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: a tensor of shape {tuple(x.shape)} is at version {x._version}; expected "
            f"version {kept[1]} instead"
        )
    return x
