# SPDX-License-Identifier: Apache-2.0
r"""Computation of cos(t) sin(t) dF/dt: the student's output and its derivative along the ODE.

    dF/dt               = dF/dx_t dx_t/dt + partial F / partial t
    inputs              u = x_t / sigma_data,                     t
    their tangents      cos(t) sin(t) dx_dt / sigma_data,         cos(t) sin(t)

The tangents are multiplied by cos(t) sin(t) before the derivative is taken, so that inner layers
stay in range at half precision near t = 0 and pi/2 (arXiv 2410.11081, Section 4.2). The tangent of
u carries 1 / sigma_data and the result does not: `tangent` multiplies it by sigma_data once.
A flow map that ends at a time other than 0 uses another factor, `scale`.

Axes: B batch, ... data axes.
"""

from dataclasses import replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from scm_lightning.autodiff.advice import advice
from scm_lightning.autodiff.check import check_tangents
from scm_lightning.autodiff.compiled import Compiled
from scm_lightning.autodiff.dual import TangentError
from scm_lightning.autodiff.methods import BY_NAME, MethodName, Point, TangentMethod
from scm_lightning.core import Bound, at_least_float32


class TangentComputer:
    """Computer of F and cos(t) sin(t) dF/dt of any network.

    Args:
        method: the method, or its short name. "dual", `DualArithmetic()`, is fastest, at the memory
            of an ordinary step; "dual_checkpoint" keeps only the input of each block. "func",
            `ForwardMode()`, takes several times the memory; "two_pass", `TwoPasses()`, a second
            forward. "finite_difference", `FiniteDifference()`, needs no forward derivative of the
            network and is accurate to about 5e-3. All others agree to rounding.
        check: whether the method is checked on every network that is trained, before its first
            step; see `check_tangents`. By dual numbers it costs less than five steps.
        compile: whether value and derivative are compiled, as one graph; with `check`, its results
            on the first batch are compared with those without, see `Compiled`.

    Raises:
        ValueError: if the method is unknown, or cannot be compiled.
    """

    def __init__(
        self,
        method: MethodName | TangentMethod = "dual",
        check: bool = True,
        compile: bool = False,  # noqa: A002  Lightning's and torch's word for it
    ) -> None:
        if not isinstance(method, TangentMethod):
            if method not in BY_NAME:
                raise ValueError(
                    f"tangent method must be one of {', '.join(BY_NAME)}, or an object of class "
                    f"TangentMethod, got {method!r}; the default is dual"
                )
            method = BY_NAME[method]
        self.method = method
        self.check = check
        self.evaluate = Compiled(method, check) if compile else method
        self._checked: WeakSet[nn.Module] = WeakSet()

    def __call__(
        self,
        network: nn.Module | Bound,
        x_t: Tensor,
        t: Tensor,
        dx_dt: Tensor,
        *,
        sigma_data: float,
        t_end: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the network and its derivative along the ODE.

        Args:
            network: F(u, t, labels, guidance), called once to three times, with neither labels nor
                guidance; or with those that are bound to it, constant along the ODE.
            x_t: noisy data. (B, ...), data units.
            t: times. (B,), radians.
            dx_dt: velocity of the ODE. (B, ...), data units per radian.
            sigma_data: standard deviation of the data, in data units.
            t_end: times that a two-time flow map leads to, constant along the ODE. (B,), radians,
                or None for a network without.
            scale: factor of the derivative. (B,), or None for cos(t) sin(t).

        Returns:
            F with its reverse graph, and cos(t) sin(t) dF/dt without one. (B, ...) each, unit
            variance and per radian; in float32 or wider.

        Raises:
            ValueError: if the velocity or the network's output has another shape than x_t, the
                tangent cannot pass an operation, or the check finds the method wrong; then module
                and operation are named, and the methods that work.

        Source: arXiv 2410.11081, Section 4.2 and Algorithm 1.
        """
        if dx_dt.shape != x_t.shape:
            raise ValueError(
                f"the velocity must have the shape of x_t, {tuple(x_t.shape)}, got "
                f"{tuple(dx_dt.shape)}; return one velocity per element"
            )

        f = network if isinstance(network, Bound) else Bound(network)
        f = f if t_end is None else replace(f, t_end=t_end)
        scale = t.cos() * t.sin() if scale is None else scale
        point = Point(x_t / sigma_data, t, dx_dt / sigma_data, scale)
        try:
            self._check_once(f, point)
            F, scaled_dF_dt = self.evaluate(f, point)
        except TangentError as error:
            others = advice(f, point, self.method)
            place = _innermost_module(f.network, error)
            raise ValueError(f"in {place}: {error}{others}") from error
        if F.shape != x_t.shape:
            raise ValueError(
                f"the network must return the shape of its input, {tuple(x_t.shape)}, got "
                f"{tuple(F.shape)} from {type(f.network).__name__}"
            )
        return at_least_float32(F), at_least_float32(scaled_dF_dt)

    def _check_once(self, f: Bound, point: Point) -> None:
        """Check the method on a network that is trained, before it is used."""
        if not self.check or point.has_no_numbers:
            return
        network: Any = f.network
        is_trained = isinstance(network, nn.Module) and network.training
        if is_trained and torch.is_grad_enabled() and network not in self._checked:
            check_tangents(self.method, f, point)
            self._checked.add(network)


def computer_of(given: TangentComputer | MethodName) -> TangentComputer:
    """A computer of tangents, from itself or from the short name of its method."""
    return given if isinstance(given, TangentComputer) else TangentComputer(given)


def _innermost_module(network: Any, error: Exception) -> str:
    """Name the module of a network in whose forward an error arose."""
    names = {id(module): name for name, module in network.named_modules()}
    found, trace = network, error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            found = owner
        trace = trace.tb_next
    name = names[id(found)]
    return f"module {name} ({type(found).__name__})" if name else f"{type(found).__name__}"
