# SPDX-License-Identifier: Apache-2.0
"""The tangent computation as one compiled graph, compared with the eager one before it is trusted.

What is compiled is the function that contains the derivative. A compiled network that gets tangents
from outside loses them without an error, and so do custom derivatives inside torch.func.jvp;
pairs of values and tangents are ordinary operations to the compiler. It is compared all the same,
on the first batch, in train mode, with the eager computation, which is checked before. Dropout
draws the same numbers in both, as it does without compilation.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.distributed.fsdp import FSDPModule

from scm_lightning.autodiff.check import HALF_LIMIT, LIMIT, gradients_of
from scm_lightning.autodiff.comparison import difference_in_gradients
from scm_lightning.autodiff.methods import DualArithmetic, Point, TangentMethod, name_of
from scm_lightning.autodiff.readings import untouched
from scm_lightning.core import Bound
from scm_lightning.saying import say


class Compiled(TangentMethod):
    """A tangent method whose calls are compiled.

    Args:
        method: the method to compile.
        check: whether it is compared with the eager one on its first call.

    Raises:
        ValueError: if the method cannot be compiled with its derivative intact.
    """

    def __init__(self, method: TangentMethod, check: bool) -> None:
        if method != DualArithmetic():
            raise ValueError(
                f"only the tangent method dual is compiled, got {name_of(method)}; the compiler "
                "may drop the derivative of the others silently"
            )
        self.eager = method
        # Eager random numbers: a run is the same compiled or not.
        options: Any = {"fallback_random": True}
        self.compiled = torch.compile(method, fullgraph=True, options=options)
        self.trusted = not check
        self.announced = False

    def __call__(self, f: Bound, point: Point) -> tuple[Tensor, Tensor]:
        """See `TangentMethod`; of fake tensors, without a graph.

        Raises:
            ValueError: if the network is sharded, or the first call's compiled results differ from
                the eager ones.
        """
        if point.has_no_numbers:
            return self.eager(f, point)
        network: Any = f.network
        if any(isinstance(each, FSDPModule) for each in network.modules()):
            raise ValueError(
                "the graph of a sharded network cannot be whole, since its weights are gathered "
                "outside of it; train with compile: false, or with another strategy than fsdp2"
            )
        if not self.announced:
            say(f"compiling the tangents of {type(network).__name__}: the first step takes minutes")
            self.announced = True
        if not self.trusted and torch.is_grad_enabled():
            self._compare(network, f, point)
        F, scaled_dF_dt = self.compiled(f, point)
        return F, scaled_dF_dt

    def _compare(self, network: nn.Module, f: Bound, point: Point) -> None:
        """Compare value, derivative and gradients of the first batch."""
        half = torch.is_autocast_enabled(point.u.device.type)
        limit = HALF_LIMIT if half else LIMIT
        with untouched(network) as state:
            outs, gradients = [], []
            for method in (self.eager, self.compiled):
                state.again()
                try:
                    F, scaled_dF_dt = method(f, point)
                except TorchDynamoException as error:
                    reason = str(error).strip().partition("\n")[0]
                    raise ValueError(
                        f"value and derivative of {type(network).__name__} cannot be one compiled "
                        f"graph: {reason}; train with compile: false"
                    ) from error
                outs.append((F.detach(), scaled_dF_dt))
                gradients.append(gradients_of(network, F))
        for name, one, other in zip(("F", "its derivative"), *outs, strict=True):
            difference = float((one - other).norm() / one.norm().clamp_min(1e-12))
            if not difference <= limit:
                raise ValueError(
                    f"compiled and eager tangents must agree to {limit:g}, got a relative "
                    f"difference of {difference:.3g} in {name}; train with compile: false"
                )
        fault = difference_in_gradients(gradients[1], gradients[0], 10 * limit)
        if fault is not None:
            raise ValueError(f"in the compiled graph {fault}; train with compile: false")
        self.trusted = True
