# SPDX-License-Identifier: Apache-2.0
"""Interface of the ways to take the derivative of F along the ODE."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from scm_lightning.autodiff.dual.forward_mode import differentiable
from scm_lightning.core import Bound, expand_time


class Point(NamedTuple):
    """Place and direction of a derivative.

    Attributes:
        u: x_t / sigma_data. (B, ...), unit variance.
        t: times. (B,), radians.
        du_dt: velocity of u. (B, ...), per radian.
        scale: the factor that the derivative is multiplied by, cos(t) sin(t) in Algorithm 1. (B,).
    """

    u: Tensor
    t: Tensor
    du_dt: Tensor
    scale: Tensor

    @property
    def has_no_numbers(self) -> bool:
        """Tell whether the tensors only stand for others: being compiled, or being counted."""
        return torch.compiler.is_compiling() or is_fake(self.u)

    def input_tangents(self) -> tuple[Tensor, Tensor]:
        """Tangents of u and t, scaled before they enter the network."""
        return expand_time(self.scale, self.u) * self.du_dt, self.scale

    def first(self, num: int) -> "Point":
        """The first samples, without a graph."""
        return Point(*(x[:num].detach() for x in self))

    def in_type(self, dtype: torch.dtype) -> "Point":
        """The same point in another type."""
        return Point(*(x.to(dtype) for x in self))


class TangentMethod(ABC):
    """A way to take the derivative of F along the ODE.

    Value and derivative see the same dropout mask, that of an ordinary forward.
    """

    @abstractmethod
    def __call__(self, f: Bound, point: Point) -> tuple[Tensor, Tensor]:
        """Evaluate the network and its derivative.

        Args:
            f: the network with its conditions; called as f(u, t).
            point: where, and in which direction.

        Returns:
            F with its reverse graph, and `scale` times dF/dt without one. (B, ...) each.
        """


def same_random_numbers(x: Tensor) -> AbstractContextManager[None]:
    """Context that puts the random state back, so that another pass drops the same activations."""
    devices = [x.device] if x.device.type == "cuda" else []
    forked: AbstractContextManager[None] = torch.random.fork_rng(devices)
    return forked


@contextmanager
def widened(network: Any, device_type: str, dtype: torch.dtype) -> Iterator[None]:
    """Context without autocast, in which a module's narrower weights and buffers have a type."""

    def wide(x: Tensor) -> torch.dtype:
        return dtype.to_complex() if x.is_complex() else dtype

    held = (*network.parameters(), *network.buffers()) if isinstance(network, nn.Module) else ()
    kept = [(x, x.data) for x in held if differentiable(x) and x.dtype.itemsize < wide(x).itemsize]
    try:
        for x, narrow in kept:
            x.data = narrow.to(wide(x))
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for x, narrow in kept:
            x.data = narrow
