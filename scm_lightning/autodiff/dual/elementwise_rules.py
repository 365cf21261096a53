# SPDX-License-Identifier: Apache-2.0
r"""Rules of element-wise operations, t_out = f'(x) tx.

A diagonal Jacobian equals its transpose, so the backward kernel of an activation is its forward
derivative too: it is called with the tangent where the gradient would stand.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scm_lightning.autodiff.dual.number import RULES, Dual, dual, is_dual, primal_of, tangent_of

aten = torch.ops.aten


def elementwise(name: str, derivative: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Give an operation of one argument a rule.

    Args:
        name: name of the operation.
        derivative: (tx, x, f(x)) to f'(x) tx.
    """

    def rule(func: Callable[..., Any], x: Dual) -> Dual:
        out = func(x.primal)
        with torch.no_grad():
            return dual(out, derivative(x.tangent, x.primal, out))

    RULES[name] = rule


elementwise("abs", lambda tx, x, y: tx * x.sign())
elementwise("cos", lambda tx, x, y: -tx * x.sin())
elementwise("erf", lambda tx, x, y: tx * (-x * x).exp() * (2 / math.pi**0.5))
elementwise("exp", lambda tx, x, y: tx * y)
elementwise("expm1", lambda tx, x, y: tx * (y + 1))
elementwise("log", lambda tx, x, y: tx / x)
elementwise("log1p", lambda tx, x, y: tx / (1 + x))
elementwise("reciprocal", lambda tx, x, y: -tx * y * y)
elementwise("rsqrt", lambda tx, x, y: -0.5 * tx * y * y * y)
elementwise("sigmoid", lambda tx, x, y: aten.sigmoid_backward(tx, y))
elementwise("sin", lambda tx, x, y: tx * x.cos())
elementwise("sqrt", lambda tx, x, y: 0.5 * tx / y)
elementwise("square", lambda tx, x, y: 2 * tx * x)
elementwise("tanh", lambda tx, x, y: aten.tanh_backward(tx, y))


def relu_rule(func: Callable[..., Any], x: Dual, inplace: bool = False) -> Dual:
    """`relu`, out of place in any case."""
    out = torch.relu(x.primal)
    with torch.no_grad():
        return dual(out, aten.threshold_backward(x.tangent, out, 0))


def silu_rule(func: Callable[..., Any], x: Dual, inplace: bool = False) -> Dual:
    """`silu`, out of place in any case."""
    out = torch.nn.functional.silu(x.primal)
    with torch.no_grad():
        return dual(out, aten.silu_backward(x.tangent, x.primal))


def gelu_rule(func: Callable[..., Any], x: Dual, approximate: str = "none") -> Dual:
    """`gelu`, exact or by tanh."""
    out = torch.nn.functional.gelu(x.primal, approximate=approximate)
    with torch.no_grad():
        tangent = aten.gelu_backward(x.tangent, x.primal, approximate=approximate)
        return dual(out, tangent)


def softplus_rule(
    func: Callable[..., Any], x: Dual, beta: float = 1.0, threshold: float = 20.0
) -> Dual:
    """`softplus`."""
    out = torch.nn.functional.softplus(x.primal, beta, threshold)
    with torch.no_grad():
        return dual(out, aten.softplus_backward(x.tangent, x.primal, beta, threshold))


def div_rule(func: Callable[..., Any], x: Any, y: Any) -> Dual:
    """X / y."""
    out = torch.div(primal_of(x), primal_of(y))
    tx, ty = tangent_of(x), tangent_of(y)
    with torch.no_grad():
        if ty is None:
            assert tx is not None
            return dual(out, tx / primal_of(y))
        from_y = -out * ty
        return dual(out, (from_y if tx is None else tx + from_y) / y.primal)


def pow_rule(func: Callable[..., Any], x: Any, exponent: Any) -> Dual:
    """X to a constant power, and a constant to the power x."""
    out = torch.pow(primal_of(x), primal_of(exponent))
    with torch.no_grad():
        tangent = torch.zeros_like(out)
        if is_dual(x):
            n = primal_of(exponent)
            tangent = tangent + n * torch.pow(x.primal, n - 1) * x.tangent
        if is_dual(exponent):
            base = torch.as_tensor(primal_of(x), dtype=out.dtype, device=out.device)
            tangent = tangent + base.log() * out * exponent.tangent
        return dual(out, tangent)


def clamp_rule(func: Callable[..., Any], x: Dual, min: Any = None, max: Any = None) -> Dual:  # noqa: A002
    """Zero tangent outside the limits."""
    out = torch.clamp(x.primal, min, max)
    with torch.no_grad():
        return dual(out, x.tangent * (out == x.primal))


RULES.update(
    {
        "clamp": clamp_rule,
        "clip": clamp_rule,
        "div": div_rule,
        "true_divide": div_rule,
        "__truediv__": div_rule,
        "gelu": gelu_rule,
        "pow": pow_rule,
        "__pow__": pow_rule,
        "relu": relu_rule,
        "silu": silu_rule,
        "softplus": softplus_rule,
    }
)
