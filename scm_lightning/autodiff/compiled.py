# SPDX-License-Identifier: Apache-2.0
"""The tangent computation as one compiled graph, compared with the eager one before it is trusted.

What is compiled is the function that contains the derivative. A compiled network that is handed
tangents from outside loses them without a word, and so do custom derivatives inside torch.func.jvp;
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
from scm_lightning.autodiff.computer import TangentComputer
from scm_lightning.autodiff.readings import untouched


class CompiledTangents:
    """A `TangentComputer` whose calls are compiled.

    Args:
        tangents: the computer to compile.

    Raises:
        ValueError: if its method cannot be compiled with its derivative intact.
    """

    def __init__(self, tangents: TangentComputer) -> None:
        if tangents.method != "dual":
            raise ValueError(
                f"only the tangent method dual is compiled, got {tangents.method}; the compiler "
                "may drop the derivative of the others silently"
            )
        self.eager = tangents
        # Eager random numbers: a run is the same compiled or not.
        options: Any = {"fallback_random": True}
        self.compiled = torch.compile(tangents, fullgraph=True, options=options)
        self.trusted = False

    def __call__(
        self,
        network: nn.Module,
        x_t: Tensor,
        t: Tensor,
        dx_dt: Tensor,
        *,
        sigma_data: float,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        t_end: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the network and its derivative; see `TangentComputer`.

        Raises:
            ValueError: if the network is sharded, or the first call's compiled results differ from
                the eager ones.
        """
        conditions: dict[str, Any] = {
            "sigma_data": sigma_data,
            "labels": labels,
            "guidance": guidance,
            "t_end": t_end,
            "scale": scale,
        }
        if any(isinstance(each, FSDPModule) for each in network.modules()):
            raise ValueError(
                "the graph of a sharded network cannot be whole, since its weights are gathered "
                "outside of it; train with compile: false, or with another strategy than fsdp2"
            )
        if not self.trusted and self.eager.check and torch.is_grad_enabled():
            self._compare(network, x_t, t, dx_dt, conditions)
        F, scaled_dF_dt = self.compiled(network, x_t, t, dx_dt, **conditions)
        return F, scaled_dF_dt

    def _compare(
        self, network: nn.Module, x_t: Tensor, t: Tensor, dx_dt: Tensor, conditions: dict[str, Any]
    ) -> None:
        """Compare value, derivative and gradients of the first batch."""
        half = torch.is_autocast_enabled(x_t.device.type)
        limit = HALF_LIMIT if half else LIMIT
        with untouched(network) as state:
            self.eager(network, x_t, t, dx_dt, **conditions)  # is checked itself
            outs, gradients = [], []
            for computer in (self.eager, self.compiled):
                state.again()
                try:
                    F, derivative = computer(network, x_t, t, dx_dt, **conditions)
                except TorchDynamoException as error:
                    reason = str(error).strip().partition("\n")[0]
                    raise ValueError(
                        f"value and derivative of {type(network).__name__} cannot be one compiled "
                        f"graph: {reason}; train with compile: false"
                    ) from error
                outs.append((F.detach(), derivative))
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
