# SPDX-License-Identifier: Apache-2.0
r"""Rules of norms, softmax and dropout.

    norms     y = (x - mean) / std:  t_y = (tx - mean(tx) - y mean(y tx)) / std, then weight t_y
    softmax   t_p = p (tx - sum(p tx))
    dropout   the same mask for primal and tangent

The Jacobians of the first two are symmetric, so their backward kernels are their forward
derivatives. Norms compute in float32 or wider, under autocast too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scm_lightning.autodiff.dual.number import RULES, Dual, dual
from scm_lightning.core import at_least_float32

aten = torch.ops.aten
DATA_ONLY = [True, False, False]
"""Of a norm's backward kernel: the derivative in the data, not in weight and bias."""


def _wide(x: Dual) -> tuple[Tensor, Tensor]:
    """Value and tangent at the precision that autocast gives norms."""
    if torch.is_autocast_enabled(x.primal.device.type):
        return at_least_float32(x.primal), at_least_float32(x.tangent)
    return x.primal, x.tangent


def layer_norm_rule(
    func: Callable[..., Any],
    x: Dual,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Dual:
    """`layer_norm`."""
    primal, tangent = _wide(x)
    out, mean, rstd = torch.native_layer_norm(primal, normalized_shape, weight, bias, eps)
    with torch.no_grad():
        tangent, _, _ = aten.native_layer_norm_backward(
            tangent, primal, list(normalized_shape), mean, rstd, None, None, DATA_ONLY
        )
        return dual(out, tangent if weight is None else tangent * weight)


def group_norm_rule(
    func: Callable[..., Any],
    x: Dual,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Dual:
    """`group_norm`."""
    primal, tangent = _wide(x)
    primal, tangent = primal.contiguous(), tangent.contiguous()
    shape = (primal.shape[0], primal.shape[1], math.prod(primal.shape[2:]))
    out, mean, rstd = torch.native_group_norm(primal, weight, bias, *shape, num_groups, eps)
    with torch.no_grad():
        tangent, _, _ = aten.native_group_norm_backward(
            tangent, primal, mean, rstd, None, *shape, num_groups, DATA_ONLY
        )
        if weight is not None:
            tangent = tangent * weight.reshape(-1, *[1] * (primal.ndim - 2))
        return dual(out, tangent)


def rms_norm_rule(
    func: Callable[..., Any],
    x: Dual,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Dual:
    """`rms_norm`."""
    primal, tangent = _wide(x)
    out = torch.nn.functional.rms_norm(primal, list(normalized_shape), weight, eps)
    with torch.no_grad():
        axes = tuple(range(-len(normalized_shape), 0))
        size = math.prod(normalized_shape)
        eps = torch.finfo(primal.dtype).eps if eps is None else eps
        square = torch.linalg.vector_norm(primal, dim=axes, keepdim=True).square() / size
        rstd = torch.rsqrt(square + eps)
        along = (primal * tangent).sum(axes, keepdim=True) * (rstd * rstd / size)
        tangent = torch.addcmul(tangent, primal, along, value=-1) * rstd
        return dual(out, tangent if weight is None else tangent * weight)


def softmax_rule(
    func: Callable[..., Any], x: Dual, dim: int = -1, *args: Any, **kwargs: Any
) -> Dual:
    """`softmax`."""
    out = func(x.primal, dim, *args, **kwargs)
    with torch.no_grad():
        tangent = x.tangent.to(out.dtype)
        return dual(out, aten._softmax_backward_data(tangent, out, dim, out.dtype))


def dropout_rule(
    func: Callable[..., Any],
    x: Dual,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Dual:
    """`dropout` in all its forms; its mask is drawn as torch draws it, on ones."""
    if not training or p == 0.0:
        return x
    mask = func(torch.ones_like(x.primal, requires_grad=False), p, training)
    with torch.no_grad():
        tangent = x.tangent * mask
    return dual(x.primal * mask, tangent)


RULES.update(
    {
        "layer_norm": layer_norm_rule,
        "group_norm": group_norm_rule,
        "rms_norm": rms_norm_rule,
        "softmax": softmax_rule,
    }
)
RULES.update(dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), dropout_rule))
