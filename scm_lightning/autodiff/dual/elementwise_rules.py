# SPDX-License-Identifier: Apache-2.0
r"""Rules of element-wise operations, t_out = f'(x) tx.

A diagonal Jacobian equals its transpose, so the backward kernel of an activation is its forward
derivative too: it is called with the tangent where the gradient would stand. That is so for real
numbers; complex ones go through torch's forward mode.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scm_lightning.autodiff.dual.carriers import is_dual, no_graph, primal_of, tangent_of
from scm_lightning.autodiff.dual.rules import Unfit, register

aten = torch.ops.aten


def real(input: Any) -> Tensor:  # noqa: A002
    """The value of a dual number that is real."""
    x: Tensor = primal_of(input)
    if not is_dual(input) or not x.is_floating_point():
        raise Unfit
    return x


def elementwise(names: str, derivative: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Give an operation of one argument a rule.

    Args:
        names: names of the operation; where it could work in place, it was not told to.
        derivative: (tx, x, f(x)) to f'(x) tx.
    """

    def rule(func: Callable[..., Any], input: Any, inplace: bool = False) -> Any:  # noqa: A002
        x = real(input)
        out = func(x)
        with no_graph():
            return out, derivative(input.tangent, x, out)

    register(rule, names)


elementwise("abs absolute __abs__", lambda tx, x, y: tx * x.sign())
elementwise("cos", lambda tx, x, y: (tx * x.sin()).neg_())
elementwise("erf", lambda tx, x, y: (-x * x).exp_().mul_(tx).mul_(2 / math.pi**0.5))
elementwise("exp", lambda tx, x, y: tx * y)
elementwise("expm1", lambda tx, x, y: tx * (y + 1))
elementwise("log", lambda tx, x, y: tx / x)
elementwise("log1p", lambda tx, x, y: tx / (1 + x))
elementwise("reciprocal", lambda tx, x, y: (tx * y).mul_(y).neg_())
elementwise("relu", lambda tx, x, y: aten.threshold_backward(tx, y, 0))
elementwise("rsqrt", lambda tx, x, y: (-0.5 * tx).mul_(y).mul_(y).mul_(y))
elementwise("sigmoid", lambda tx, x, y: aten.sigmoid_backward(tx, y))
elementwise("silu", lambda tx, x, y: aten.silu_backward(tx, x))
elementwise("sin", lambda tx, x, y: tx * x.cos())
elementwise("sqrt", lambda tx, x, y: 0.5 * tx / y)
elementwise("square", lambda tx, x, y: (tx * x).mul_(2))
elementwise("tanh", lambda tx, x, y: aten.tanh_backward(tx, y))


def gelu_rule(func: Callable[..., Any], input: Any, approximate: str = "none") -> Any:  # noqa: A002
    """`gelu`, exact or by tanh."""
    x = real(input)
    out = func(x, approximate=approximate)
    with no_graph():
        return out, aten.gelu_backward(input.tangent, x, approximate=approximate)


def softplus_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    beta: float = 1.0,
    threshold: float = 20.0,
) -> Any:
    """`softplus`."""
    x = real(input)
    out = func(x, beta, threshold)
    with no_graph():
        return out, aten.softplus_backward(input.tangent, x, beta, threshold)


def div_rule(func: Callable[..., Any], input: Any, other: Any) -> Any:  # noqa: A002
    """`x / y`."""
    y = primal_of(other)
    out = func(primal_of(input), y)
    tx, ty = tangent_of(input), tangent_of(other)
    with no_graph():
        if ty is None:
            assert tx is not None
            return out, tx / y
        from_y = -out * ty
        return out, (from_y if tx is None else tx + from_y) / y


def reversed_div_rule(func: Callable[..., Any], input: Any, other: Any) -> Any:  # noqa: A002
    """`y / x`, the call of a number's division."""
    x = real(input)
    if is_dual(other):
        raise Unfit
    out = func(x, other)
    with no_graph():
        return out, -out * input.tangent / x


def remainder_rule(func: Callable[..., Any], input: Any, other: Any) -> Any:  # noqa: A002
    """`x - q y`, with a whole number q that does not change."""
    return _remainder(input, other, func(primal_of(input), primal_of(other)))


def reversed_remainder_rule(func: Callable[..., Any], input: Any, other: Any) -> Any:  # noqa: A002
    """`y % x`, the call of a number's remainder."""
    return _remainder(other, input, func(primal_of(input), primal_of(other)))


def _remainder(x: Any, y: Any, out: Tensor) -> Any:
    tx, ty = tangent_of(x), tangent_of(y)
    with torch.no_grad():
        if ty is None:
            assert tx is not None
            return out, tx.expand(out.shape).clone()
        from_y = -ty * ((primal_of(x) - out) / primal_of(y)).round()
        return out, from_y if tx is None else tx + from_y


def pow_rule(func: Callable[..., Any], input: Any, exponent: Any) -> Any:  # noqa: A002
    """`x` to the power of a number."""
    if not isinstance(exponent, (int, float)):
        raise Unfit
    x = real(input)
    out = func(x, exponent)
    with no_graph():
        if exponent == 0:
            return out, torch.zeros_like(x)
        return out, (exponent * torch.pow(x, exponent - 1)).mul_(input.tangent)


def clamp_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    min: Any = None,  # noqa: A002
    max: Any = None,  # noqa: A002
) -> Any:
    """Zero tangent outside the limits."""
    if is_dual(min) or is_dual(max):
        raise Unfit
    x = real(input)
    out = func(x, min, max)
    with no_graph():
        return out, input.tangent * (out == x)


register(clamp_rule, "clamp clip")
register(div_rule, "div divide true_divide __truediv__")
register(remainder_rule, "remainder fmod __mod__")
register(reversed_remainder_rule, "__rmod__")
register(reversed_div_rule, "__rtruediv__ __rdiv__")
register(gelu_rule, "gelu")
register(pow_rule, "pow __pow__")
register(softplus_rule, "softplus")
