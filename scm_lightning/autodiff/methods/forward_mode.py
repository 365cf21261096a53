# SPDX-License-Identifier: Apache-2.0
"""The derivative by torch's own forward mode, in the pass that is trained or in one of its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.autodiff.methods.base import Point, TangentMethod, same_random_numbers
from scm_lightning.autodiff.repaired_jvp import jvp
from scm_lightning.core import Bound


@dataclass(frozen=True)
class ForwardMode(TangentMethod):
    """One pass in grad mode, whose value is trained.

    The derivative's graph lives until it is cut off at the end, at several times the memory.
    """

    def __call__(self, f: Bound, point: Point) -> tuple[Tensor, Tensor]:
        """F is the primal of the pass itself; see `TangentMethod`."""
        F, scaled_dF_dt = jvp(f, (point.u, point.t), point.input_tangents())
        return F, scaled_dF_dt.detach()


@dataclass(frozen=True)
class TwoPasses(TangentMethod):
    """Forward mode without grad, then an ordinary forward: the oracle of the other methods."""

    def __call__(self, f: Bound, point: Point) -> tuple[Tensor, Tensor]:
        """See `TangentMethod`."""
        with torch.no_grad(), same_random_numbers(point.u):
            _, scaled_dF_dt = jvp(f, (point.u, point.t), point.input_tangents())
        return f(point.u, point.t), scaled_dF_dt
