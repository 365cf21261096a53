# SPDX-License-Identifier: Apache-2.0
r"""How cos(t) sin(t) dF/dt is computed: the student's output and its derivative along the ODE.

    dF/dt               = dF/dx_t dx_t/dt + partial F / partial t
    inputs              u = x_t / sigma_data,                     t
    their tangents      cos(t) sin(t) dx_dt / sigma_data,         cos(t) sin(t)

The factor cos(t) sin(t) goes onto the tangents before the derivative is taken, so that inner layers
stay in range at half precision near t = 0 and pi/2 (arXiv 2410.11081, Section 4.2). The tangent of
u carries 1 / sigma_data and the result does not: `tangent` multiplies it by sigma_data once.

A method is a function (f, primals, tangents) -> (F, derivative); F keeps its reverse graph, the
derivative has none, and both see the same dropout mask.
Axes: B batch, ... data axes.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from scm_lightning.core import at_least_float32, expand_time

Inputs = tuple[Tensor, Tensor]
Method = Callable[[Callable[[Tensor, Tensor], Tensor], Inputs, Inputs], tuple[Tensor, Tensor]]


def func_jvp(
    f: Callable[[Tensor, Tensor], Tensor], primals: Inputs, tangents: Inputs
) -> tuple[Tensor, Tensor]:
    """One forward-mode pass in grad mode: F is the primal of the pass itself."""
    F, derivative = torch.func.jvp(f, primals, tangents)  # type: ignore[misc]
    return F, derivative.detach()


def two_pass_jvp(
    f: Callable[[Tensor, Tensor], Tensor], primals: Inputs, tangents: Inputs
) -> tuple[Tensor, Tensor]:
    """Forward mode without grad, then an ordinary forward: the oracle of the other methods.

    The random state is put back in between, so that both passes drop the same activations.
    """
    device = primals[0].device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        _, derivative = torch.func.jvp(f, primals, tangents)  # type: ignore[misc]
    return f(*primals), derivative


METHODS: dict[str, Method] = {"func": func_jvp, "two_pass": two_pass_jvp}


class TangentComputer:
    """Computes F and cos(t) sin(t) dF/dt of any network with the call (u, t, labels, guidance).

    Args:
        method: "func" is one `torch.func.jvp` in grad mode, whose primal is trained: one forward
            less, but the tangent's graph lives until the derivative is cut off. "two_pass" runs the
            derivative under no_grad and a second forward for the gradient: slower, at the memory of
            an ordinary step. Both give the same numbers.

    Raises:
        ValueError: if the method is unknown.
    """

    def __init__(self, method: Literal["func", "two_pass"] = "func") -> None:
        if method not in METHODS:
            raise ValueError(
                f"tangent method must be one of {', '.join(METHODS)}, got {method!r}; the default "
                "is func"
            )
        self.method = method

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
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the network and its derivative along the ODE.

        Args:
            network: F(u, t, labels, guidance), called once or twice.
            x_t: noisy data. (B, ...), data units.
            t: times. (B,), radians.
            dx_dt: velocity of the ODE. (B, ...), data units per radian.
            sigma_data: standard deviation of the data, in data units.
            labels: class labels, constant along the ODE. (B,) or None.
            guidance: guidance scales, constant along the ODE. (B,) or None.

        Returns:
            F with its reverse graph, and cos(t) sin(t) dF/dt without one. (B, ...) each, unit
            variance and per radian; in float32 or wider.

        Raises:
            ValueError: if the velocity or the network's output has another shape than x_t.

        Source: arXiv 2410.11081, Section 4.2 and Algorithm 1.
        """
        if dx_dt.shape != x_t.shape:
            raise ValueError(
                f"the velocity must have the shape of x_t, {tuple(x_t.shape)}, got "
                f"{tuple(dx_dt.shape)}; return one velocity per element"
            )
        cos_sin = t.cos() * t.sin()

        def f(u: Tensor, t: Tensor) -> Tensor:
            F: Tensor = network(u, t, labels, guidance)
            return F

        primals = (x_t / sigma_data, t)
        tangents = (expand_time(cos_sin, x_t) * dx_dt / sigma_data, cos_sin)
        F, cos_sin_dF_dt = METHODS[self.method](f, primals, tangents)
        if F.shape != x_t.shape:
            raise ValueError(
                f"the network must return the shape of its input, {tuple(x_t.shape)}, got "
                f"{tuple(F.shape)} from {type(network).__name__}"
            )
        return at_least_float32(F), at_least_float32(cos_sin_dF_dt)
