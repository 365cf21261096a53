# SPDX-License-Identifier: Apache-2.0
"""Calls that torch does not announce: Functions, scripted functions, a few methods.

A custom Function keeps its own backward. Its tangent comes from its own `jvp` if it has one, else
from the operations of its forward. A scripted function goes through torch's forward mode whole.
Both are watched while a pass is open, by standing in for the method that calls them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from scm_lightning.autodiff.dual.carriers import Dual, TangentError, leaves
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
_methods = {name: getattr(Tensor, name) for name in ("as_subclass", "set_")}
_backward, _new_parameter = torch.autograd.backward, torch.nn.Parameter.__new__
_script_calls = {kind: kind.__call__ for kind in _SCRIPTED}


class _Levels(threading.local):
    """Passes that are under way in a thread, innermost last."""

    def __init__(self) -> None:
        self.all: list[DualNumbers] = []
        self.returned: list[Any] = []


_here = _Levels()
_lock, _watchers = threading.Lock(), ExitStack()
_num_open = 0
_recording: dict[type[Function], type[Function]] = {}


@contextmanager
def watched_doors(level: DualNumbers) -> Iterator[None]:
    """Context in which Functions and scripted functions are handed to a pass."""
    _count_passes(1)
    _here.all.append(level)
    level.is_open = True
    _tell_nesting()
    try:
        yield
    finally:
        level.is_open = False
        _here.all.remove(level)
        _here.returned.clear()
        _tell_nesting()
        _count_passes(-1)


def _tell_nesting() -> None:
    for each in _here.all:
        each.is_nested = len(_here.all) > 1


def _count_passes(change: int) -> None:
    """Watch while any thread has a pass under way."""
    global _num_open
    with _lock:
        _num_open += change
        if change == 1 == _num_open:
            _watchers.enter_context(torch.compiler.set_stance("force_eager"))
            _Base.apply = classmethod(_watched_apply)  # type: ignore[attr-defined]
            for name, method in _methods.items():
                setattr(Tensor, name, _watched_method(name, method))
            torch.autograd.backward = _watched_backward
            torch.nn.Parameter.__new__ = _parameter_of  # type: ignore
            for kind in _SCRIPTED:
                kind.__call__ = _watched_script(_script_calls[kind])  # type: ignore[method-assign]
        if _num_open == 0:
            del _Base.apply  # type: ignore[attr-defined]
            for name in _methods:
                delattr(Tensor, name)
            torch.autograd.backward = _backward
            torch.nn.Parameter.__new__ = _new_parameter  # type: ignore[method-assign]
            for kind in _SCRIPTED:
                kind.__call__ = _script_calls[kind]  # type: ignore[method-assign]
            _watchers.close()


def _level_of(*trees: Any) -> DualNumbers | None:
    """The pass of this thread whose tangents a call's arguments have."""
    duals = list(leaves(trees))
    return next((each for each in reversed(_here.all) if any(map(each.carries, duals))), None)


def _apply(cls: type[Function], *args: Any) -> Any:
    return super(_Base, cls).apply(*args)  # type: ignore[misc]


def _watched_apply(cls: type[Function], *args: Any) -> Any:
    # Where no mode is on, inside an operation and not the network.
    if not _here.all or not torch._C._is_torch_function_mode_enabled():
        return _apply(cls, *args)
    given = _level_of(args)
    level = given or _here.all[-1]  # of what a function among the arguments refers to
    if given is not None and cls.jvp is not Function.jvp:
        tangents = _by_its_jvp(cls, args)
        if tangents is not None:
            with torch._C.DisableTorchFunction():
                return level.joined(_apply(cls, *args), tangents)
    out = _apply(_recorded(cls), *args)
    return _rejoined(level, cls, args, out, _here.returned.pop())


def _by_its_jvp(cls: type[Function], args: tuple[Any, ...]) -> Any:
    """Tangents by the Function's own formula; None where torch does not let it be called.

    Torch does not where an input is returned as it is; the forward's operations tell then.
    """
    with torch._C.DisableTorchFunction():
        state = RandomState(args, {})
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
            _here.returned.append(out)
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
    if lost and not constants and (found or _level_of(args)):
        raise TangentError(
            f"the autograd.Function {cls.__name__} lost the tangent; give it a jvp, or write its "
            "forward with torch operations"
        )
    return out


def _watched_method(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            if _level_of(args, kwargs) is not None:
                raise TangentError(f"the tangent cannot follow {name}")
            return method(*args, **kwargs)

    return call


def _watched_backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
    if _level_of(tensors) is not None:
        raise TangentError("the tangent cannot follow backward")
    _backward(tensors, *args, **kwargs)


def _parameter_of(cls: type[Tensor], data: Any = None, requires_grad: bool = True) -> Any:
    """A parameter made of a tensor is a constant: its numbers alone."""
    if type(data) is Dual:
        data = data.detach()
    return _new_parameter(cls, data, requires_grad)


def _watched_script(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            level = _level_of(args, kwargs)
            if level is None:
                return call(self, *args, **kwargs)

            def scripted(*args: Any, **kwargs: Any) -> Any:
                return call(self, *args, **kwargs)

            return level.joined(*by_forward_mode(scripted, args, kwargs))

    return run
