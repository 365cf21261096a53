# SPDX-License-Identifier: Apache-2.0
r"""Rules of linear and bilinear operations: views, joins, sums, products, convolutions.

linear      t_out = f(tx)
bilinear    t_out = f(tx, y) + f(x, ty), a term for every factor that is no constant
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scm_lightning.autodiff.dual.number import RULES, dual, is_dual, primal_of, tangent_of

LINEAR = """
    __getitem__ adaptive_avg_pool1d adaptive_avg_pool2d avg_pool1d avg_pool2d avg_pool3d
    bfloat16 broadcast_to channel_shuffle chunk clone contiguous cpu cuda cumsum diagonal
    double expand expand_as flatten flip float half index_select interpolate mean movedim
    narrow neg pad permute pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape roll
    select split squeeze sum swapaxes t tensor_split tile to transpose tril triu type_as
    unbind unflatten unfold unsqueeze upsample view view_as
"""
"""Names of operations linear in their first argument."""


def linear_rule(func: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation linear in its first argument, the others constant."""
    args = tuple(primal_of(each) for each in args)
    out = func(primal_of(x), *args, **kwargs)
    if not is_dual(x):
        return out
    with torch.no_grad():
        tangents = func(x.tangent, *args, **kwargs)
    if isinstance(out, Tensor):
        return dual(out, tangents) if out.is_floating_point() else out
    return tuple(dual(*pair) for pair in zip(out, tangents, strict=True))


def join_rule(func: Callable[..., Any], parts: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    """`cat` and `stack`: constants have zero tangents."""
    out = func([primal_of(part) for part in parts], *args, **kwargs)
    with torch.no_grad():
        tangents = [part.tangent if is_dual(part) else torch.zeros_like(part) for part in parts]
        return dual(out, func(tangents, *args, **kwargs))


def detach_rule(func: Callable[..., Any], x: Any) -> Tensor:
    """`detach` cuts the tangent as it cuts the graph."""
    primal: Tensor = x.primal.detach()
    return primal


def add_rule(func: Callable[..., Any], x: Any, y: Any, *, alpha: float = 1) -> Any:
    """x + alpha y, and x - alpha y."""
    sign = -alpha if func.__name__ in ("sub", "subtract", "__sub__") else alpha
    out = (
        func(primal_of(x), primal_of(y), alpha=alpha)
        if alpha != 1
        else func(primal_of(x), primal_of(y))
    )
    tx, ty = tangent_of(x), tangent_of(y)
    with torch.no_grad():
        if ty is None:
            assert tx is not None
            return dual(out, tx)
        ty = ty if sign == 1 else sign * ty
        return dual(out, ty if tx is None else tx + ty)


def mul_rule(func: Callable[..., Any], x: Any, y: Any) -> Any:
    """X y."""
    out = func(primal_of(x), primal_of(y))
    tx, ty = tangent_of(x), tangent_of(y)
    with torch.no_grad():
        if ty is None:
            return dual(out, tx * primal_of(y))
        if tx is None:
            return dual(out, primal_of(x) * ty)
        first = tx * y.primal
        if first.dtype == x.primal.dtype == ty.dtype:  # addcmul takes one type alone
            return dual(out, torch.addcmul(first, x.primal, ty))
        return dual(out, first + x.primal * ty)


def product_rule(func: Callable[..., Any], x: Any, y: Any) -> Any:
    """`matmul`, `bmm`, `mm`."""
    out = func(primal_of(x), primal_of(y))
    tx, ty = tangent_of(x), tangent_of(y)
    with torch.no_grad():
        terms = [] if tx is None else [func(tx, primal_of(y))]
        terms += [] if ty is None else [func(primal_of(x), ty)]
        return dual(out, sum(terms[1:], terms[0]))


def einsum_rule(func: Callable[..., Any], equation: str, *operands: Any) -> Any:
    """A term for every operand that is no constant."""
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    values = [primal_of(operand) for operand in operands]
    out = func(equation, *values)
    with torch.no_grad():
        terms = [
            func(equation, *values[:place], operand.tangent, *values[place + 1 :])
            for place, operand in enumerate(operands)
            if is_dual(operand)
        ]
        return dual(out, sum(terms[1:], terms[0]))


def layer_rule(
    func: Callable[..., Any], x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """`linear` and convolutions: the bias adds nothing to the tangent, constant weights neither."""
    out = func(primal_of(x), primal_of(weight), primal_of(bias), *args, **kwargs)
    with torch.no_grad():
        terms = []
        if is_dual(x):
            terms.append(func(x.tangent, primal_of(weight), None, *args, **kwargs))
        if is_dual(weight):
            terms.append(func(primal_of(x), weight.tangent, None, *args, **kwargs))
        tangent = sum(terms[1:], terms[0])
        if is_dual(bias):
            axes = (-1, *[1] * (out.ndim - 2)) if func.__name__.startswith("conv") else (-1,)
            tangent = tangent + bias.tangent.reshape(axes)
        return dual(out, tangent)


def where_rule(func: Callable[..., Any], condition: Any, x: Any, y: Any) -> Any:
    """Linear in both branches."""
    out = torch.where(condition, primal_of(x), primal_of(y))
    with torch.no_grad():
        zero = out.new_zeros(())
        tx, ty = (zero if (t := tangent_of(each)) is None else t for each in (x, y))
        return dual(out, torch.where(condition, tx, ty))


def masked_fill_rule(func: Callable[..., Any], x: Any, mask: Tensor, value: Any) -> Any:
    """Zero tangent where a constant is filled in."""
    with torch.no_grad():
        tangent = x.tangent.masked_fill(mask, 0.0)
    return dual(x.primal.masked_fill(mask, value), tangent)


RULES.update(dict.fromkeys(LINEAR.split(), linear_rule))
RULES.update(dict.fromkeys(("cat", "concat", "concatenate", "stack", "hstack"), join_rule))
RULES.update(dict.fromkeys(("add", "sub", "subtract", "__add__", "__radd__", "__sub__"), add_rule))
RULES.update(dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), mul_rule))
RULES.update(dict.fromkeys(("matmul", "bmm", "mm", "mv", "__matmul__"), product_rule))
RULES.update(
    dict.fromkeys(
        (
            "linear",
            "conv1d",
            "conv2d",
            "conv3d",
            "conv_transpose1d",
            "conv_transpose2d",
            "conv_transpose3d",
        ),
        layer_rule,
    )
)
RULES.update(
    {
        "detach": detach_rule,
        "einsum": einsum_rule,
        "where": where_rule,
        "masked_fill": masked_fill_rule,
    }
)
