# SPDX-License-Identifier: Apache-2.0
r"""Operations without a rule: one at a time through torch's own forward mode.

The value is computed first, as without tangents; then the operation runs again on detached values
inside a forward level, under the same random numbers, for the tangent alone. The level is closed at
once, so that nothing of it is kept. A result that depends on tangents and has none is refused.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm_lightning.autodiff.dual.carriers import (
    Dual,
    TangentError,
    aligned_tangent,
    leaves,
    map_tensors,
)
from scm_lightning.autodiff.dual.kinds import name_of

fallback_calls: Counter[str] = Counter()
"""Calls of operations without a rule that went through torch's forward mode."""

_PLAIN = (bool, int, str, type(None), torch.dtype, torch.device, torch.layout, torch.Size)
_PASSED_ON = frozenset(
    getattr(torch, name)
    for name in ("broadcast_tensors", "meshgrid", "atleast_1d", "atleast_2d", "atleast_3d")
)
"""Operations that give each argument back, constants as constants."""


def by_forward_mode(func: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Value and tangent of an operation; None in place of constants' tangents.

    Raises:
        TangentError: if the operation has no forward derivative, loses the tangent, changes an
            argument or returns numbers.
    """
    fallback_calls[name_of(func)] += 1
    state = RandomState(args, kwargs)
    given = list(leaves((args, kwargs)))
    versions = [x._version for x in given]
    out = func(*args, **kwargs)
    if [x._version for x in given] != versions:
        raise TangentError(
            f"the tangent cannot follow {name_of(func)}, which changes one of its arguments"
        )
    if any(x.is_nested for x in leaves(out)):
        raise TangentError(
            f"the tangent cannot follow {name_of(func)}, which returns a nested tensor"
        )
    if not any(map(differentiable, leaves(out))):
        _check_numbers(func, out)
        return out, None
    with state.again():
        tangent = tangents_of(func, args, kwargs)
    return out, _checked(func, given, out, tangent)


def tangents_of(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Tangents of an operation's results, in the results' structure."""
    with forward_level(), _no_fused_kernel(func):
        with underived(f"the operation {name_of(func)} has no forward derivative"):
            out = func(*map_tensors(enter, args), **map_tensors(enter, kwargs))
        return map_tensors(leave, out)


@contextmanager
def underived(said: str) -> Iterator[None]:
    """Context in which torch's errors about a missing forward derivative become ours."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # NotImplementedError is one too
        reason = str(error).strip().partition("\n")[0]
        raise TangentError(f"{said} ({reason})") from error


@contextmanager
def forward_level() -> Iterator[None]:
    """Context for torch's forward mode without a graph, and without fused attention."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        # Inside a custom Function torch switches forward mode off.
        stack.enter_context(forward_ad._set_fwd_grad_enabled(True))
        stack.enter_context(forward_ad.dual_level())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _no_fused_kernel(func: Any) -> Any:
    """Context without oneDNN, whose LSTM has no forward derivative."""
    if name_of(func) == "lstm":
        return torch.backends.mkldnn.flags(enabled=False)
    return nullcontext()


def enter(x: Any) -> Any:
    """An argument inside the forward level."""
    if type(x) is Dual:
        plain = x.detach()
        return forward_ad.make_dual(plain, aligned_tangent(x))  # type: ignore[no-untyped-call]
    return x.detach() if isinstance(x, Tensor) else x


def leave(x: Any) -> Any:
    """The tangent of a result; None for a constant."""
    if not isinstance(x, Tensor) or not differentiable(x):
        return None
    tangent = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
    return None if tangent is None else tangent.detach()


def differentiable(x: Tensor) -> bool:
    """Tell whether a tensor's type can carry a tangent."""
    return x.is_floating_point() or x.is_complex()


def _checked(func: Callable[..., Any], given: list[Tensor], out: Any, tangent: Any) -> Any:
    """The tangents, after every result has been found to have one, or to be a constant."""
    if isinstance(out, (tuple, list)) and not isinstance(out, torch.Size):
        return [_checked(func, given, *pair) for pair in zip(out, tangent, strict=True)]
    if isinstance(out, dict):
        return {key: _checked(func, given, value, tangent[key]) for key, value in out.items()}
    if not isinstance(out, Tensor):
        _check_numbers(func, out)
        return None
    passed_on = func in _PASSED_ON or any(out is x and type(x) is not Dual for x in given)
    if tangent is None and differentiable(out) and not passed_on:
        raise TangentError(f"the operation {name_of(func)} lost the tangent")
    for x in given if tangent is not None else ():
        if type(x) is Dual:
            shares = _same_storage(tangent, x.tangent)
            if _same_storage(out, x) and not shares:
                raise TangentError(f"the tangent of {name_of(func)} is not a view as its value is")
            if shares and not _same_storage(out, x):
                tangent = tangent.clone()
    return tangent


def _same_storage(one: Tensor, other: Tensor) -> bool:
    if one.layout is not torch.strided or other.layout is not torch.strided:
        return False
    return storage_number(one.untyped_storage()) == storage_number(other.untyped_storage())


def storage_number(storage: torch.UntypedStorage) -> int:
    """Number that identifies a storage among all that are alive, even without an address."""
    return int(storage._cdata)


def _check_numbers(func: Callable[..., Any], out: Any) -> None:
    """Refuse results that carry numbers away without their tangents."""
    if isinstance(out, (tuple, list)) and not isinstance(out, torch.Size):
        for each in out:
            _check_numbers(func, each)
    elif not isinstance(out, (Tensor, *_PLAIN)):
        raise TangentError(
            f"the tangent cannot follow {name_of(func)}, which returns {type(out).__name__}; pass "
            "x.detach() where a constant is meant"
        )


class RandomState:
    """The random numbers before an operation, to be drawn again if it drew any.

    Args:
        args: the operation's arguments, whose devices and generators count.
        kwargs: those by name.
    """

    def __init__(self, args: Any, kwargs: Any) -> None:
        devices = {x.device.index for x in leaves((args, kwargs)) if x.device.type == "cuda"}
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Generator)]
        of_devices = [torch.cuda.default_generators[index] for index in devices]
        self.generators = [torch.default_generator, *of_devices, *given]
        self.states = self._read()

    def _read(self) -> list[Tensor]:
        return [each.get_state() for each in self.generators]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Context in which the same random numbers come again; it leaves the state unchanged."""
        now = self._read()
        self.restore()
        try:
            yield
        finally:
            self._write(now)

    def restore(self) -> None:
        """Put the random numbers back."""
        self._write(self.states)

    def _write(self, states: list[Tensor]) -> None:
        """Set the states that differ: setting costs more than comparing."""
        for generator, old, new in zip(self.generators, self._read(), states, strict=True):
            if not torch.equal(old, new):
                generator.set_state(new)
