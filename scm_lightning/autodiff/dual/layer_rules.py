# SPDX-License-Identifier: Apache-2.0
r"""Rules of norms, softmax and dropout.

    norms     y = (x - mean) / std:  t_y = (tx - mean(tx) - y mean(y tx)) / std, then weight t_y
    softmax   t_p = p (tx - sum(p tx))
    dropout   the same mask for primal and tangent

The Jacobians of the first two are symmetric, so their backward kernels are their forward
derivatives. Under autocast the tangents of norms are computed in float32; the values as ever.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scm_lightning.autodiff.dual.carriers import Pair, is_dual, no_graph, primal_of
from scm_lightning.autodiff.dual.elementwise_rules import real
from scm_lightning.autodiff.dual.forward_mode import tangents_of
from scm_lightning.autodiff.dual.rules import RULES, Unfit, entry, register
from scm_lightning.core import at_least_float32

aten = torch.ops.aten
DATA_ONLY = [True, False, False]
"""Gradients asked of a norm's backward kernel: in the data, not in weight and bias."""


def _checked(input: Any, *constants: Any) -> Tensor:  # noqa: A002
    """The value of a norm's argument, whose weights are constant."""
    x = real(input)
    if any(map(is_dual, constants)):
        raise Unfit
    return x


def _casts(x: Tensor) -> bool:
    """Tell whether autocast decides a norm's type: float32 on a GPU, none on a CPU."""
    return bool(torch.is_autocast_enabled(x.device.type))


def layer_norm_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """`layer_norm`."""
    primal, tangent = _checked(input, weight, bias), input.tangent
    if _casts(primal):
        out = func(primal, normalized_shape, weight, bias, eps)
    else:
        out, mean, rstd = torch.native_layer_norm(primal, normalized_shape, weight, bias, eps)
    with no_graph():
        if _casts(primal):
            primal, tangent = at_least_float32(primal), at_least_float32(tangent)
            _, mean, rstd = torch.native_layer_norm(primal, normalized_shape, None, None, eps)
        tangent, _, _ = aten.native_layer_norm_backward(
            tangent, primal, list(normalized_shape), mean, rstd, None, None, DATA_ONLY
        )
        return out, tangent if weight is None else tangent * weight


def group_norm_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """`group_norm`, which keeps the layout in memory: dropout behind it draws in that order."""
    primal, tangent = _checked(input, weight, bias), input.tangent
    shape = (primal.shape[0], primal.shape[1], math.prod(primal.shape[2:]))
    layout = None if _casts(primal) else _layout(primal)
    if layout is not None:
        out, mean, rstd = torch.native_group_norm(primal, weight, bias, *shape, num_groups, eps)
    else:
        out = func(primal, num_groups, weight, bias, eps)
    with no_graph():
        if layout is None:
            primal, layout = primal.contiguous(), torch.contiguous_format
            if _casts(primal):
                primal, tangent = at_least_float32(primal), at_least_float32(tangent)
            _, mean, rstd = torch.native_group_norm(primal, None, None, *shape, num_groups, eps)
        tangent = tangent.contiguous(memory_format=layout)
        tangent, _, _ = aten.native_group_norm_backward(
            tangent, primal, mean, rstd, None, *shape, num_groups, DATA_ONLY
        )
        if weight is not None:
            tangent = tangent * weight.reshape(-1, *[1] * (primal.ndim - 2))
        return out, tangent


def _layout(x: Tensor) -> torch.memory_format | None:
    """A layout that the kernel of group norm takes without a copy; None for any other."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.ndim == 4:
        _, C, H, W = x.shape
        return torch.channels_last if x.stride() == (C * H * W, 1, W * C, C) else None
    return None


def rms_norm_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    """`rms_norm`."""
    primal, tangent = _checked(input, weight), input.tangent
    out = func(primal, normalized_shape, weight, eps)
    with no_graph():
        if eps is None:  # of the type that torch computes in
            eps = torch.finfo(at_least_float32(primal).dtype).eps
        if _casts(primal):
            primal, tangent = at_least_float32(primal), at_least_float32(tangent)
        axes = tuple(range(-len(normalized_shape), 0))
        size = math.prod(normalized_shape)
        square = torch.linalg.vector_norm(primal, dim=axes, keepdim=True).square() / size
        rstd = torch.rsqrt(square + eps)
        along = (primal * tangent).sum(axes, keepdim=True) * (rstd * rstd / size)
        tangent = torch.addcmul(tangent, primal, along, value=-1) * rstd
        return out, tangent if weight is None else tangent * weight


def batch_norm_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """`batch_norm`, whose running statistics follow the values once."""
    x = real(input)
    if x.ndim < 2 or any(map(is_dual, (running_mean, running_var, weight, bias))):
        raise Unfit
    if not training:  # before the statistics change
        assert running_var is not None
        scale = torch.rsqrt(running_var + eps)
    out = func(x, running_mean, running_var, weight, bias, training, momentum, eps)
    with no_graph():
        tangent = at_least_float32(input.tangent)
        along = (1, -1, *[1] * (x.ndim - 2))
        if training:
            wide, axes = at_least_float32(x.detach()), [0, *range(2, x.ndim)]
            var, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
            rstd = torch.rsqrt(var + eps)
            y = (wide - mean) * rstd
            centred = tangent - tangent.mean(axes, keepdim=True)
            tangent = (centred - y * (y * tangent).mean(axes, keepdim=True)) * rstd
        else:
            tangent = tangent * scale.view(along)
        return out, tangent if weight is None else tangent * weight.view(along)


def instance_norm_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    *options: Any,
    **more: Any,
) -> Any:
    """`instance_norm`, whose running statistics follow the values once."""
    if not use_input_stats or isinstance(input, Pair):
        raise Unfit
    out = func(primal_of(input), running_mean, running_var, weight, bias, True, *options, **more)
    given = (input, None, None, weight, bias, True, *options)
    return out, tangents_of(func, given, more)


def softmax_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    dim: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`softmax`."""
    if dim is None:
        raise Unfit
    out = func(real(input), dim, *args, **kwargs)
    with no_graph():
        tangent = input.tangent.to(out.dtype)
        return out, aten._softmax_backward_data(tangent, out, dim, out.dtype)


def dropout_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Any:
    """`dropout` in all its forms; its mask is drawn as torch draws it, on ones."""
    x = real(input)
    if not training or p == 0.0:
        out = func(x, p, training)
        return out, input.tangent if out is x else input.tangent.clone()
    mask = func(torch.ones_like(x, requires_grad=False), p, training)
    with no_graph():
        tangent = input.tangent * mask
    return x * mask, tangent


def grid_sample_rule(
    func: Callable[..., Any],
    input: Any,  # noqa: A002
    grid: Any,
    *options: Any,
    **more: Any,
) -> Any:
    """`grid_sample`, linear in the picture; a sample depends on its own place in the grid alone.

    So the gradient of all samples of one channel together has the slope of each at its place.
    """
    if isinstance(grid, Pair):
        raise Unfit
    x, places = primal_of(input), primal_of(grid)
    out = func(x, places, *options, **more)
    with no_graph():
        terms = [func(input.tangent, places, *options, **more)] if is_dual(input) else []
    if is_dual(grid):
        channels = x.shape[1]
        each = places.detach().repeat_interleave(channels, 0).requires_grad_()
        with torch.enable_grad():
            samples = func(x.detach().flatten(0, 1).unsqueeze(1), each, *options, **more)
        (slope,) = torch.autograd.grad(samples, each, torch.ones_like(samples))
        along = slope * grid.tangent.repeat_interleave(channels, 0)
        terms.append(along.sum(-1).reshape(out.shape))
    return out, sum(terms[1:], terms[0])


def cdist_rule(
    func: Callable[..., Any],
    x1: Any,
    x2: Any,
    p: float = 2.0,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Any:
    """`cdist`, whose tangent is that of the norms of all differences."""
    if isinstance(x1, Pair) or isinstance(x2, Pair):
        raise Unfit

    def cdist(x: Tensor, y: Tensor) -> Tensor:
        differences = x.unsqueeze(-2) - y.unsqueeze(-3)
        norms: Tensor = torch.linalg.vector_norm(differences, p, dim=-1)
        return norms

    return func(x1, x2, p, compute_mode), tangents_of(cdist, (x1, x2), {})


register(layer_norm_rule, "layer_norm")
register(cdist_rule, "cdist")
register(group_norm_rule, "group_norm")
register(rms_norm_rule, "rms_norm")
register(softmax_rule, "softmax")
register(dropout_rule, "dropout dropout1d dropout2d dropout3d")
RULES[torch.nn.functional.grid_sample] = entry(grid_sample_rule)
RULES[torch.nn.functional.batch_norm] = entry(batch_norm_rule)
RULES[torch.nn.functional.instance_norm] = entry(instance_norm_rule)
