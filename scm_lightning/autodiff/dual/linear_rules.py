# SPDX-License-Identifier: Apache-2.0
r"""Rules of linear and bilinear operations: views, joins, sums, products, convolutions.

linear      t_out = f(tx)
bilinear    t_out = f(tx, y) + f(x, ty), a term for every factor that is no constant
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scm_lightning.autodiff.dual.carriers import (
    TangentError,
    aligned_tangent,
    is_dual,
    no_graph,
    primal_of,
    tangent_of,
)
from scm_lightning.autodiff.dual.rules import RULES, Unfit, entry, register

VIEWS = """
    __getitem__ broadcast_to chunk diagonal expand expand_as movedim moveaxis narrow permute select
    split split_with_sizes squeeze swapaxes swapdims t tensor_split hsplit vsplit dsplit transpose
    adjoint unbind unflatten unsqueeze view_as view_as_real view_as_complex
"""
"""Names of operations linear in their first argument that return views of it."""
COPIES = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d
    channel_shuffle clone conj_physical cumsum flip fliplr flipud index_select interpolate mean
    neg negative pixel_shuffle pixel_unshuffle repeat repeat_interleave roll rot90 sum
    take_along_dim tile trace tril triu unfold upsample fft ifft fft2 ifft2 fftn ifftn rfft irfft
    rfft2 irfft2 rfftn irfftn hfft ihfft fftshift ifftshift
"""
"""Names of those that return new memory."""
EITHER = """
    bfloat16 conj contiguous cpu cuda double flatten float half positive ravel reshape reshape_as
    resolve_conj resolve_neg to type type_as
"""
"""Names of those that return the argument itself, a view or a copy, as they find it."""


def linear_rule(func: Callable[..., Any], input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
    """An operation linear in its first argument, the others constant."""
    if not is_dual(input):
        raise Unfit
    args = tuple(map(primal_of, args))
    x = primal_of(input)
    out = func(x, *args, **kwargs)
    if isinstance(out, Tensor) and not out.is_floating_point() and not out.is_complex():
        return out, None
    with no_graph():
        return out, func(input.tangent, *args, **kwargs)


def either_rule(func: Callable[..., Any], input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
    """The argument itself, a view or a copy: the tangent does as the value does."""
    args = tuple(primal_of(each) for each in args)
    if not is_dual(input):  # the others lend their shape or type
        return func(input, *args, **kwargs), None
    x = primal_of(input)
    out = func(x, *args, **kwargs)
    if out is x:
        return out, input.tangent
    if not isinstance(out, Tensor):  # `type` without arguments
        return out, None
    if not out.is_floating_point() and not out.is_complex():
        return out, None
    with no_graph():
        return out, func(aligned_tangent(input), *args, **kwargs)


def view_rule(func: Callable[..., Any], input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
    """A view of the first argument: the tangent becomes one of the argument's tangent."""
    args = tuple(primal_of(each) for each in args)
    if not is_dual(input):  # the others lend their shape or type
        return func(input, *args, **kwargs), None
    out = func(primal_of(input), *args, **kwargs)
    with no_graph():
        return out, func(aligned_tangent(input), *args, **kwargs)


def reshape_rule(func: Callable[..., Any], input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
    """`view`, which a tangent of other strides cannot do; not the reading of bits as a type.

    Raises:
        TangentError: if bits are read as another kind of number.
    """
    if not is_dual(input):
        raise Unfit
    x = primal_of(input)
    out = func(x, *args, **kwargs)
    if out.dtype != x.dtype and out.is_complex() + x.is_complex() != 1:
        raise TangentError(f"the tangent cannot follow view of {x.dtype} as {out.dtype}")
    with no_graph():
        return out, func(aligned_tangent(input), *args, **kwargs)


def join_rule(func: Callable[..., Any], tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    """`cat` and `stack`: constants have zero tangents."""
    values = [primal_of(each) for each in tensors]
    out = func(values, *args, **kwargs)
    with no_graph():
        tangents = [
            each.tangent if is_dual(each) else torch.zeros_like(value)
            for each, value in zip(tensors, values, strict=True)
        ]
        return out, func(tangents, *args, **kwargs)


def constant_rule(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`detach` and others that cut the tangent as they cut the graph."""
    return func(*(primal_of(each) for each in args), **kwargs), None


def pad_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    pad: Any,
    mode: str = "constant",
    value: Any = None,
) -> Any:
    """`pad`: a constant that is padded has tangent 0."""
    if is_dual(value) or not is_dual(input):
        raise Unfit
    out = func(primal_of(input), pad, mode, value)
    with no_graph():
        return out, func(input.tangent, pad, mode, None)


def add_rule(func: Callable[..., Any], input: Any, other: Any, *, alpha: Any = 1) -> Any:  # noqa: A002
    """`x + alpha y`."""
    return _sum(func, input, other, alpha, alpha)


def sub_rule(func: Callable[..., Any], input: Any, other: Any, *, alpha: Any = 1) -> Any:  # noqa: A002
    """`x - alpha y`."""
    return _sum(func, input, other, alpha, -alpha)


def reversed_sub_rule(func: Callable[..., Any], input: Any, other: Any) -> Any:  # noqa: A002
    """`y - x`, the call of a number's or array's minus."""
    out = func(primal_of(input), primal_of(other))
    tx, ty = tangent_of(input), tangent_of(other)
    with no_graph():
        if tx is None:
            return out, _whole(ty, out)
        return out, -tx if ty is None else ty - tx


def _sum(func: Callable[..., Any], x: Any, y: Any, alpha: Any, factor: Any) -> Any:
    options = {} if type(alpha) is int and alpha == 1 else {"alpha": alpha}
    out = func(primal_of(x), primal_of(y), **options)
    tx, ty = tangent_of(x), tangent_of(y)
    with no_graph():
        if ty is None:
            return out, _whole(tx, out)
        if tx is None:
            return out, _whole(ty, out) if factor == 1 else factor * ty
        return out, torch.add(tx, ty, alpha=factor)


def _whole(tangent: Tensor | None, out: Tensor) -> Tensor:
    """A copy of a term's tangent in the shape of the sum, so that each may be written into."""
    assert tangent is not None
    return tangent.expand(out.shape).clone()


def mul_rule(func: Callable[..., Any], input: Any, other: Any) -> Any:  # noqa: A002
    """`x y`."""
    x, y = primal_of(input), primal_of(other)
    out = func(x, y)
    tx, ty = tangent_of(input), tangent_of(other)
    with no_graph():
        if ty is None:
            return out, tx * y
        if tx is None:
            return out, x * ty
        first = tx * y
        if first.dtype == x.dtype == ty.dtype:  # addcmul takes one type alone
            return out, first.addcmul_(x, ty)
        return out, first + x * ty


def product_rule(func: Callable[..., Any], input: Any, mat2: Any) -> Any:  # noqa: A002
    """`bmm`, `mm`, `@`."""
    x, y = primal_of(input), primal_of(mat2)
    out = func(x, y)
    tx, ty = tangent_of(input), tangent_of(mat2)
    with no_graph():
        terms = [] if tx is None else [func(tx, y)]
        terms += [] if ty is None else [func(x, ty)]
        return out, sum(terms[1:], terms[0])


def vector_rule(func: Callable[..., Any], input: Any, vec: Any) -> Any:  # noqa: A002
    """`mv`, with its own names of arguments."""
    return product_rule(func, input, vec)


def matmul_rule(func: Callable[..., Any], input: Any, other: Any) -> Any:  # noqa: A002
    """`matmul`, with its own names of arguments."""
    return product_rule(func, input, other)


def einsum_rule(func: Callable[..., Any], equation: str, *operands: Any) -> Any:
    """A term for every operand that is no constant."""
    if not isinstance(equation, str):
        raise Unfit
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    values = [primal_of(operand) for operand in operands]
    out = func(equation, *values)
    with no_graph():
        terms = [
            func(equation, *values[:place], aligned_tangent(operand), *values[place + 1 :])
            for place, operand in enumerate(operands)
            if is_dual(operand)
        ]
        return out, sum(terms[1:], terms[0])


def linear_layer_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    weight: Any,
    bias: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`linear` and convolutions: the bias adds nothing to the tangent, constant weights neither."""
    x, w = primal_of(input), primal_of(weight)
    out = func(x, w, primal_of(bias), *args, **kwargs)
    with no_graph():
        terms = []
        if is_dual(input):
            terms.append(func(input.tangent, w, None, *args, **kwargs))
        if is_dual(weight):
            terms.append(func(x, weight.tangent, None, *args, **kwargs))
        if is_dual(bias):
            axes = [1] * (w.ndim - 2)  # of pixels, behind the channels
            terms.append(bias.tangent.reshape(-1, *axes).expand(out.shape))
        return out, sum(terms[1:], terms[0])


def method_where_rule(func: Callable[..., Any], self: Any, condition: Any, other: Any) -> Any:
    """`x.where(condition, y)`."""
    return where_rule(torch.where, condition, self, other)


def where_rule(func: Callable[..., Any], condition: Any, input: Any, other: Any) -> Any:  # noqa: A002
    """Linear in both branches."""
    if is_dual(condition):
        raise Unfit
    out = func(condition, primal_of(input), primal_of(other))
    with no_graph():
        zero = out.new_zeros(())
        tx, ty = (zero if (t := tangent_of(each)) is None else t for each in (input, other))
        return out, torch.where(condition, tx, ty)


def masked_fill_rule(func: Callable[..., Any], input: Any, mask: Any, value: Any) -> Any:  # noqa: A002
    """Zero tangent where a constant is filled in."""
    if not is_dual(input) or is_dual(value):
        raise Unfit
    out = func(primal_of(input), mask, value)
    with no_graph():
        return out, input.tangent.masked_fill(mask, 0.0)


register(view_rule, VIEWS)
register(linear_rule, COPIES)
register(either_rule, EITHER)
register(reshape_rule, "view")
register(join_rule, "cat concat concatenate stack hstack vstack dstack")
register(add_rule, "add __add__ __radd__")
register(sub_rule, "sub subtract __sub__")
register(reversed_sub_rule, "__rsub__")
register(mul_rule, "mul multiply __mul__ __rmul__")
register(product_rule, "bmm mm")
register(vector_rule, "mv")
register(matmul_rule, "matmul __matmul__")
register(einsum_rule, "einsum")
register(
    linear_layer_rule,
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
)
register(masked_fill_rule, "masked_fill")
register(constant_rule, "detach")
RULES[torch.nn.functional.pad] = entry(pad_rule)
RULES[torch.sparse.mm] = entry(product_rule)
RULES[torch.where] = entry(where_rule)
RULES[torch.Tensor.where] = entry(method_where_rule)
for _name in ("T", "mT", "H", "mH", "real", "imag"):
    RULES[getattr(torch.Tensor, _name).__get__] = entry(view_rule)
