# SPDX-License-Identifier: Apache-2.0
r"""Writing into tensors that have tangents, or get them by it.

The tangent of a view is a view of the tangent, so that a write through one alias is seen by all. A
plain tensor that is written into gets a tangent in the layout of its whole storage, and so does
every other tensor on that storage when it is next used. When the pass ends, all become plain again:
no parameter or buffer keeps a tangent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from scm_lightning.autodiff.dual.carriers import (
    Dual,
    TangentError,
    aligned_tangent,
    leaves,
    map_tensors,
)
from scm_lightning.autodiff.dual.forward_mode import (
    RandomState,
    differentiable,
    enter,
    forward_level,
    storage_number,
    underived,
)
from scm_lightning.autodiff.dual.kinds import name_of

if TYPE_CHECKING:
    from scm_lightning.autodiff.dual.numbers import DualNumbers

_NAMES = "t_ transpose_ swapaxes_ swapdims_ squeeze_ unsqueeze_ as_strided_"
_RESHAPES = frozenset(getattr(Tensor, name) for name in _NAMES.split())


class Writes:
    """Plain storages that were written into during a pass.

    Args:
        level: the pass.

    Attributes:
        storages: tangent of each whole storage, in bytes, beside the storage, by its address.
    """

    def __init__(self, level: DualNumbers) -> None:
        self.level = level
        self.storages: dict[int, tuple[Tensor, Any]] = {}
        self._adopted: list[tuple[Tensor, type[Tensor]]] = []

    def write(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Apply an operation in place, to value and tangent.

        Raises:
            TangentError: if the operation has no forward derivative.
        """
        target = args[0] if args else kwargs.get("input", kwargs.get("self"))
        if not isinstance(target, Tensor):
            raise TangentError(
                f"the tangent cannot follow {name_of(func)}, which changes several tensors"
            )
        if not differentiable(target):
            return func(*args, **kwargs)
        if func in _RESHAPES:
            with torch.no_grad():
                func(aligned_tangent(target), *args[1:], **kwargs)
            return func(*args, **kwargs)
        if type(target) is not Dual:
            self.adopt(target)
        if name_of(func) in ("detach_", "floor_divide_", "__ifloordiv__"):
            with torch.no_grad():
                self._writable(target).zero_()
            return func(*args, **kwargs)
        state = RandomState(args, kwargs)
        tangent = _tangent_written(func, target, args[1:], kwargs)
        state.restore()
        out = func(*args, **kwargs)
        with torch.no_grad():
            self._writable(target).copy_(tangent)
        return out

    def adopt(self, x: Tensor) -> None:
        """Give a plain tensor the zero tangent, and all that share its storage."""
        storage = x.untyped_storage()
        if storage_number(storage) not in self.storages:
            zeros = torch.zeros(storage.nbytes(), dtype=torch.uint8, device=x.device)
            self.storages[storage_number(storage)] = (zeros, storage)
        self._give(x)
        if x._base is not None:  # the network may return it as it is
            self.notice(x._base)

    def notice(self, tree: Any) -> None:
        """Give plain arguments that lie on a written storage their tangents."""
        for x in leaves(tree):
            if type(x) is not Dual and x.layout is torch.strided and differentiable(x):
                try:
                    address = storage_number(x.untyped_storage())
                except (NotImplementedError, RuntimeError):  # a wrapper has no storage
                    continue
                if address in self.storages:
                    self._give(x)

    def forget(self) -> None:
        """Make all that got a tangent by being written into plain again."""
        for x, kind in self._adopted:
            if type(x) is Dual:
                x.__class__ = kind  # type: ignore[assignment]
                del x.tangent, x.level
        self._adopted.clear()
        self.storages.clear()

    def _give(self, x: Tensor) -> None:
        whole = self.storages[storage_number(x.untyped_storage())][0]
        size = whole.numel() - whole.numel() % x.element_size()
        tangent = whole[:size].view(x.dtype)
        tangent = tangent.as_strided(x.size(), x.stride(), x.storage_offset())
        self._adopted.append((x, type(x)))
        self.level.mark(x, tangent)

    def _writable(self, x: Any) -> Tensor:
        """The tangent of a tensor, after expanded axes have got memory of their own."""
        if any(s == 0 and n > 1 for s, n in zip(x.tangent.stride(), x.shape, strict=True)):
            x.tangent = x.tangent.clone(memory_format=torch.contiguous_format)
        tangent: Tensor = x.tangent
        return tangent


def _tangent_written(func: Callable[..., Any], target: Any, others: Any, kwargs: Any) -> Tensor:
    """The tangent that a target has after an operation in place, which is tried on a copy."""
    kwargs = {key: each for key, each in kwargs.items() if key not in ("input", "self")}
    with forward_level():
        copy = forward_ad.make_dual(target.detach().clone(), target.tangent.clone())  # type: ignore[no-untyped-call]
        with underived(f"the in-place operation {name_of(func)} has no forward derivative"):
            func(copy, *map_tensors(enter, others), **map_tensors(enter, kwargs))
        tangent = forward_ad.unpack_dual(copy).tangent  # type: ignore[no-untyped-call]
        return torch.zeros_like(target) if tangent is None else tangent.detach()
