# SPDX-License-Identifier: Apache-2.0
"""Calls that torch does not announce: custom autograd Functions, and scripted functions.

A custom Function keeps its own backward. Its tangent comes from its own `jvp` if it has one, else
from the operations of its forward. A scripted function goes through torch's forward mode whole.
Both are watched while a pass is open, by standing in for the method that calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from scm_lightning.autodiff.dual.carriers import Dual, TangentError
from scm_lightning.autodiff.dual.forward_mode import (
    RandomState,
    by_forward_mode,
    differentiable,
    tangents_of,
)

if TYPE_CHECKING:
    from scm_lightning.autodiff.dual.numbers import DualNumbers

# Asked by `Function.apply` for the call itself, also where a network keeps `apply` under a name of
# its own; its base, written in C, cannot be stood in for.
_Base = torch.autograd.function._SingleLevelFunction
_SCRIPTED = (torch._C.ScriptFunction, torch._C.ScriptMethod)
_script_calls = {kind: kind.__call__ for kind in _SCRIPTED}  # type: ignore[operator]

_levels: list[DualNumbers] = []
_recording: dict[type[Function], type[Function]] = {}
_returned: list[Any] = []
"""What the forward of the Function in hand returned, before autograd wrapped it."""


@contextmanager
def watched_doors(level: DualNumbers) -> Iterator[None]:
    """Context in which Functions and scripted functions are handed to a pass."""
    _levels.append(level)
    if len(_levels) == 1:
        _Base.apply = classmethod(_watched_apply)  # type: ignore[assignment,method-assign]
        for kind in _SCRIPTED:
            kind.__call__ = _watched_script(_script_calls[kind])  # type: ignore[method-assign,operator]
    try:
        yield
    finally:
        _levels.pop()
        if not _levels:
            del _Base.apply
            _returned.clear()
            for kind in _SCRIPTED:
                kind.__call__ = _script_calls[kind]  # type: ignore[method-assign,operator]


def _apply(cls: type[Function], *args: Any) -> Any:
    return super(_Base, cls).apply(*args)  # type: ignore[misc]


def _watched_apply(cls: type[Function], *args: Any) -> Any:
    level = _levels[-1]
    if not torch._C._is_torch_function_mode_enabled():  # inside an operation, not the network
        return _apply(cls, *args)
    if cls.jvp is not Function.jvp and level.any_dual(args):
        tangents = _by_its_jvp(cls, args)
        if tangents is not None:
            with torch._C.DisableTorchFunction():
                return level.joined(_apply(cls, *args), tangents)
    out = _apply(_recorded(cls), *args)
    return _rejoined(level, cls, args, out, _returned.pop())


def _by_its_jvp(cls: type[Function], args: tuple[Any, ...]) -> Any:
    """Tangents by the Function's own formula; None where torch does not let it be called.

    Torch does not where an input is returned as it is; the forward's operations tell then.
    """
    with torch._C.DisableTorchFunction():
        state = RandomState(args)
        try:
            return tangents_of(lambda *given: _apply(cls, *given), args, {})
        except TangentError:
            return None
        finally:
            state.restore()


def _recorded(cls: type[Function]) -> type[Function]:
    """The same Function, whose forward leaves behind what it returned."""
    if cls not in _recording:

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = cls.forward(*args, **kwargs)
            _returned.append(out)
            return out

        _recording[cls] = type(cls.__name__, (cls,), {"forward": staticmethod(forward)})
    return _recording[cls]


def _rejoined(
    level: DualNumbers, cls: type[Function], args: tuple[Any, ...], out: Any, returned: Any
) -> Any:
    """Outputs with their tangents: autograd makes a new tensor of an input that is returned."""
    outs, raws = ((out,), (returned,)) if isinstance(out, Tensor) else (out, returned)
    lost, found = [], False
    for one, raw in zip(outs, raws, strict=True):
        if isinstance(one, Tensor) and type(one) is not Dual and type(raw) is Dual:
            level.mark(one, raw.tangent.view_as(raw.tangent))
        found |= type(one) is Dual
        if isinstance(one, Tensor) and differentiable(one) and type(one) is not Dual:
            passed_on = any(raw is each for each in args)
            # An output without gradient beside one with a tangent: statistics, say.
            lost += [] if passed_on else [one]
    constants = found and not any(each.requires_grad for each in lost)
    if level.any_dual(args) and lost and not constants:
        raise TangentError(
            f"the autograd.Function {cls.__name__} lost the tangent; give it a jvp, or write its "
            "forward with torch operations"
        )
    return out


def _watched_script(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        level = _levels[-1]
        with torch._C.DisableTorchFunction():
            if not level.any_dual((args, *kwargs.values())):
                return call(self, *args, **kwargs)

            def scripted(*args: Any, **kwargs: Any) -> Any:
                return call(self, *args, **kwargs)

            return level.joined(*by_forward_mode(scripted, args, kwargs))

    return run
