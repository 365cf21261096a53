# SPDX-License-Identifier: Apache-2.0
"""The derivative by dual numbers: one pass, by rules of our own.

Relative to `TwoPasses`, a whole training step takes about two thirds of the time and no more memory
(tests/benchmarks/README.md).
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from scm_lightning.autodiff.checkpointing import checkpointed_blocks
from scm_lightning.autodiff.dual import DualNumbers, TangentError, Traced
from scm_lightning.autodiff.methods.base import Point, TangentMethod
from scm_lightning.core import Bound


@dataclass(frozen=True)
class DualArithmetic(TangentMethod):
    """Value and derivative in one pass: the fastest, at the memory of an ordinary step.

    Args:
        checkpoint: whether only the input of each block is kept, and its values, not its tangents,
            are computed again for the backward pass.
    """

    checkpoint: bool = False

    def __call__(self, f: Bound, point: Point) -> tuple[Tensor, Tensor]:
        """One pass of dual numbers; inside a compiled graph, and of fake tensors, of pairs.

        Raises:
            TangentError: if the network returns something that carries no tangent.
            ValueError: if it has no blocks to checkpoint.
        """
        network: Any = f.network
        with checkpointed_blocks(network) if self.checkpoint else nullcontext():
            return _by_dual_numbers(f, point)


def _by_dual_numbers(f: Bound, point: Point) -> tuple[Tensor, Tensor]:
    tu, tt = point.input_tangents()
    if point.has_no_numbers:
        pair: Any = f(Traced(point.u, tu), Traced(point.t, tt))  # type: ignore[arg-type]
        return (pair.primal, pair.tangent) if isinstance(pair, Traced) else _lost(pair)
    with DualNumbers() as level:
        u, t = (x.view_as(x) for x in (point.u, point.t))  # the caller's own stay plain
        out = f(level.join(u, tu), level.join(t, tt))
        F, scaled_dF_dt = level.part(out) if isinstance(out, Tensor) else (out, None)
        return _lost(out) if scaled_dF_dt is None else (F, scaled_dF_dt)


def _lost(out: Any) -> NoReturn:
    raise TangentError(
        f"the network lost the tangent: it must return a tensor made from u and t, got a "
        f"{type(out).__name__} without one"
    )
