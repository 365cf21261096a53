# SPDX-License-Identifier: Apache-2.0
"""A network whose conditions are bound: from here on it is a function of u and t.

What a sample is conditioned on does not change along the ODE, nor from sampling step to sampling
step, so tangents, objectives and samplers see F(u, t) alone, and F(u, t, t_end) of a flow map.
Axes: B batch, ... data axes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NULL_LABEL = -1
"""Label that stands for no class; a network's embedding of it is zero."""


@dataclass(frozen=True)
class Bound:
    """F(u, t): a network whose other arguments stay as they are.

    Attributes:
        network: called as network(u, t, labels, guidance), and with t_end behind them if there is
            one: foreign networks need not know of it.
        labels: classes, -1 for none. (B,) int64, or None.
        guidance: guidance scales that the network takes as an input. (B,), or None.
        t_end: times that a flow map leads to, where they are bound too. (B,), radians, or None.

    Raises:
        ValueError: if a condition is no tensor.
    """

    network: Callable[..., Tensor]
    labels: Tensor | None = None
    guidance: Tensor | None = None
    t_end: Tensor | None = None

    def __post_init__(self) -> None:
        check_conditions(labels=self.labels, guidance=self.guidance, t_end=self.t_end)

    def __call__(self, u: Tensor, t: Tensor, t_end: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            u: x_t / sigma_data. (B, ...), unit variance.
            t: times. (B,), radians.
            t_end: times that a flow map leads to. (B,), radians, or None for the bound ones.

        Returns:
            F. (B, ...), unit variance.
        """
        t_end = self.t_end if t_end is None else t_end
        ends = () if t_end is None else (t_end,)
        return self.network(u, t, self.labels, self.guidance, *ends)

    def first(self, num: int) -> "Bound":
        """The same function of the first samples of a batch."""
        return self._changed(lambda x: x[:num])

    def in_type(self, dtype: torch.dtype) -> "Bound":
        """The same function with floating conditions of another type."""
        return self._changed(lambda x: x.to(dtype) if x.is_floating_point() else x)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Bound":
        conditions = (self.labels, self.guidance, self.t_end)
        return Bound(self.network, *(x if x is None else change(x) for x in conditions))


def check_conditions(**conditions: Tensor | None) -> None:
    """Refuse one number for a whole batch, which networks take in different ways or not at all.

    Args:
        conditions: by name. (B,) each, or None.

    Raises:
        ValueError: if one is no tensor.
    """
    for name, given in conditions.items():
        if given is not None and not isinstance(given, Tensor):
            raise ValueError(
                f"{name} must be a tensor of one value per sample, (B,), or None, got {given!r}; "
                "pass torch.full((B,), value) for one value everywhere"
            )
