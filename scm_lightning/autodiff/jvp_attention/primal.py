# SPDX-License-Identifier: Apache-2.0
r"""Attention that also returns its log-sum-exp, by torch's own fused operators.

    o = softmax(S) v,      lse = log sum_n exp(S_n),      S = scale q k^T + mask

The operators are those behind `scaled_dot_product_attention`, with their native backward; called by
name because the public function drops lse. Gradients flow through o alone.
Axes: B batch, H heads, M queries, N keys, D features of q and k, Dv features of v.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from scm_lightning.autodiff.jvp_attention.masks import (
    additive_mask,
    adjacent_features,
    causal_mask,
    check_attention_inputs,
    rows_with_keys,
)
from scm_lightning.core import at_least_float32

Backend = Literal["flash_cpu", "flash", "efficient", "dense"]
HALF = (torch.float16, torch.bfloat16)


def attention_with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend, and return the log-sum-exp that the tangent needs.

    Args:
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
        v: values. (B, H, N, Dv).
        attn_mask: boolean (True attends) or additive, broadcastable to (B, H, M, N), or None.
        is_causal: whether query m sees keys n <= m alone, aligned at the top left.
        scale: factor of q k^T; 1 / sqrt(D) if None.

    Returns:
        o, differentiable in q, k and v (B, H, M, Dv), and lse without gradient, natural
        logarithm, float32 or wider (B, H, M). Fully masked rows: 0 and -inf.

    Raises:
        ValueError: if shapes, data types or the mask do not fit.
    """
    q, k, v = autocast_like_torch(q, k, v)
    check_attention_inputs(q, k, v, attn_mask, is_causal)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if attn_mask is None:
        o, lse = _attend(q, k, v, None, is_causal, scale)
        return o, lse.detach()
    mask = additive_mask(attn_mask, q, k)
    o, lse = _attend(q, k, v, mask, is_causal, scale)
    empty = ~rows_with_keys(attn_mask, q, k)
    return o.masked_fill(empty, 0.0), lse.detach().masked_fill(empty[..., 0], -torch.inf)


def autocast_like_torch(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, cast as `scaled_dot_product_attention` would; else return the tensors."""
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def choose_backend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool
) -> Backend:
    """Pick the operator that takes these inputs and has a backward for them.

    Args:
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
        v: values. (B, H, N, Dv).
        mask: additive mask or None. (B, H, M, N).
        is_causal: as in `attention_with_lse`.
    """
    # No operator differentiates the mask without being asked to write a dense gradient.
    if min(q.numel(), k.numel(), v.numel()) == 0 or (mask is not None and mask.requires_grad):
        return "dense"
    same = q.shape[-1] == v.shape[-1]
    if q.device.type == "cpu":
        return "flash_cpu" if same else "dense"
    if q.device.type != "cuda" or q.dtype == torch.float64:
        return "dense"
    # The flash operator aligns the triangle at the bottom right.
    aligned = not is_causal or q.shape[2] == k.shape[2]
    if same and aligned and mask is None and q.dtype in HALF and q.shape[-1] <= 256:
        ampere = torch.cuda.get_device_properties(q.device).major >= 8
        return "flash" if ampere else "efficient"
    return "efficient"


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """(o, lse) where every row has a key; lse may still be attached."""
    backend = choose_backend(q, k, v, mask, is_causal)
    aten = torch.ops.aten
    if backend == "dense":
        return _dense(q, k, v, mask, is_causal, scale)
    q, k, v = adjacent_features(q), adjacent_features(k), adjacent_features(v)
    if backend == "flash_cpu":
        o, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale
        )
        return o, lse
    dv = v.shape[-1]
    q, k, v = pad_features(q), pad_features(k), pad_features(v)
    if backend == "flash":
        o, lse = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, scale=scale)[:2]
    else:
        bias = None if mask is None else align_bias(mask)
        o, lse = aten._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, 0.0, is_causal, scale=scale
        )[:2]
    # The efficient operator pads lse to a multiple of 32 queries.
    return o[..., :dv], lse[..., : q.shape[2]]


def pad_features(x: Tensor, multiple: int = 8) -> Tensor:
    """Zeros up to a multiple of 8 features, the alignment of the CUDA operators."""
    return x if x.shape[-1] % multiple == 0 else pad(x, (0, -x.shape[-1] % multiple))


def align_bias(mask: Tensor) -> Tensor:
    """Same mask in rows of a multiple of 16 elements, as the efficient operator asks.

    Args:
        mask: additive mask, whose expanded samples and heads stay so. (B, H, M, N).
    """
    stored = mask[tuple(slice(0, 1) if s == 0 else slice(None) for s in mask.stride()[:2])]
    num_keys = mask.shape[-1]
    padded = pad(stored, (0, -num_keys % 16)).contiguous()
    return padded[..., :num_keys].expand(mask.shape)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The formula itself, for what no fused operator takes; memory M N."""
    S = at_least_float32(q * scale) @ at_least_float32(k).mT
    if mask is not None:
        S = S + mask
    if is_causal:
        S = S.masked_fill(~causal_mask(S.shape[-2], S.shape[-1], S.device), -torch.inf)
    o = S.softmax(-1) @ at_least_float32(v)
    return o.to(q.dtype), S.detach().logsumexp(-1)
