# SPDX-License-Identifier: Apache-2.0
r"""Attention and its derivative from one pass over the keys, as one operator with a gradient for o.

    (o, to, lse) from (q, k, v, tq, tk, tv)
    dS = P * (do v^T - rowsum(do * o)),   dq = scale dS k,   dk = scale dS^T q,   dv = P^T do

The alternative to `attention_with_lse` followed by `attention_tangent`: the logits are computed
once. On CUDA with Triton it is one kernel; elsewhere those two, one after the other. Only o has a
gradient: to and lse are constants to reverse mode.
Source: Lu and Song, arXiv 2410.11081, Appendix F; Dao et al., arXiv 2205.14135, Algorithm 4.
Axes: B batch, H heads, M queries, N keys, D features of q and k, Dv features of v.
"""

from typing import Any

import torch
from torch import Tensor

from scm_lightning.autodiff.jvp_attention.blockwise import BLOCK_M
from scm_lightning.autodiff.jvp_attention.masks import (
    additive_mask,
    adjacent_features,
    causal_mask,
    check_attention_inputs,
    expand_mask,
    finite_lse,
)
from scm_lightning.autodiff.jvp_attention.primal import (
    attention_with_lse,
    autocast_like_torch,
    choose_backend,
)
from scm_lightning.autodiff.jvp_attention.tangent import attention_tangent, prepare_tangents
from scm_lightning.autodiff.jvp_attention.triton_launch import dual_kernel, find_tile
from scm_lightning.core import at_least_float32


def fused_attention_with_tangent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend and differentiate forward at once; the mask is constant.

    Args:
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
        v: values. (B, H, N, Dv).
        tq: tangent of q, or None where it is zero. (B, H, M, D).
        tk: tangent of k, or None. (B, H, N, D).
        tv: tangent of v, or None. (B, H, N, Dv).
        attn_mask: boolean (True attends) or additive, broadcastable to (B, H, M, N), or None.
        is_causal: whether query m sees keys n <= m alone, aligned at the top left.
        scale: factor of q k^T; 1 / sqrt(D) if None.

    Returns:
        o, differentiable in q, k and v (B, H, M, Dv); its tangent without gradient, likewise; lse
        without gradient, natural logarithm (B, H, M). Fully masked rows: 0, 0 and -inf.

    Raises:
        ValueError: if shapes, data types or the mask do not fit.

    Source: arXiv 2410.11081, Appendix F.
    """
    q, k, v = autocast_like_torch(q, k, v)
    check_attention_inputs(q, k, v, attn_mask, is_causal)
    tq, tk, tv = prepare_tangents((q, k, v), (tq, tk, tv))
    if attn_mask is not None:
        expand_mask(attn_mask, q, k)
        attn_mask = attn_mask.detach()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    o, to, lse = torch.ops.scm_lightning.attention_dual(
        q, k, v, tq, tk, tv, attn_mask, is_causal, scale
    )
    return o, to, lse


@torch.library.custom_op("scm_lightning::attention_dual", mutates_args=())
def attention_dual_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator behind `fused_attention_with_tangent`, in dense layouts."""
    tile = find_tile("both", q, v, masked=attn_mask is not None)
    if tile is not None:
        return dual_kernel(q, k, v, tq, tk, tv, attn_mask, is_causal, scale, tile)
    options: Any = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale}
    o, lse = attention_with_lse(q, k, v, **options)
    o, lse = o.contiguous(), lse.contiguous()
    return o, attention_tangent(q, k, v, tq, tk, tv, o, lse, **options), lse


@attention_dual_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    o = q.new_empty((*q.shape[:3], v.shape[3]))
    wide = torch.promote_types(q.dtype, torch.float32)
    return o, torch.empty_like(o), q.new_empty(q.shape[:3], dtype=wide)


@torch.library.custom_op("scm_lightning::attention_dual_backward", mutates_args=())
def attention_dual_backward_op(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v: by torch's flash backward where it applies, else by blocks."""
    mask = None if attn_mask is None else additive_mask(attn_mask, q, k)
    backend = choose_backend(q, k, v, mask, is_causal)
    lse, aten = finite_lse(lse), torch.ops.aten
    do, q, k, v = (adjacent_features(x) for x in (do, q, k, v))
    if backend == "flash_cpu":
        grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            do, q, k, v, o, lse, 0.0, is_causal, attn_mask=mask, scale=scale
        )
    elif backend == "flash" and q.shape[-1] % 8 == 0:
        M, N, unused = q.shape[2], k.shape[2], q.new_zeros(2, dtype=torch.uint64)
        grads = aten._scaled_dot_product_flash_attention_backward(
            do, q, k, v, o, lse, None, None, M, N, 0.0, is_causal, unused, unused, scale=scale
        )
    else:
        grads = backward_from_lse(do, q, k, v, o, lse, mask, is_causal, scale)
    dq, dk, dv = (grad.contiguous() for grad in grads)
    return dq, dk, dv


@attention_dual_backward_op.register_fake
def _(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def backward_from_lse(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v by blocks of queries, recomputing the weights; memory linear in N.

    Args:
        do: gradient of o. (B, H, M, Dv).
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
        v: values. (B, H, N, Dv).
        o: attention output. (B, H, M, Dv).
        lse: finite log-sum-exp, see `finite_lse`. (B, H, M).
        mask: additive mask or None. (B, H, M, N).
        is_causal: whether query m sees keys n <= m alone.
        scale: factor of q k^T.

    Source: arXiv 2205.14135, Algorithm 4.
    """
    wide_k, wide_v = at_least_float32(k) * scale, at_least_float32(v)
    dq = torch.empty_like(q)
    dk, dv = torch.zeros_like(wide_k), torch.zeros_like(wide_v)
    for m in range(0, q.shape[2], BLOCK_M):
        rows = (slice(None), slice(None), slice(m, m + BLOCK_M))
        wide_q, wide_do = at_least_float32(q[rows]), at_least_float32(do[rows])
        P = wide_q @ wide_k.mT
        if mask is not None:
            P += mask[rows]
        if is_causal:
            P.masked_fill_(~causal_mask(P.shape[-2], P.shape[-1], P.device, m), -torch.inf)
        P.sub_(lse[rows][..., None]).exp_()
        dv += P.mT @ wide_do
        delta = (wide_do * o[rows]).sum(-1, keepdim=True)
        dS = (wide_do @ wide_v.mT).sub_(delta).mul_(P)
        dq[rows] = (dS @ wide_k).to(q.dtype)
        dk += dS.mT @ wide_q
    return dq, (dk * scale).to(k.dtype), dv.to(v.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, _, _, _, attn_mask, ctx.is_causal, ctx.scale = inputs
    o, to, lse = output
    ctx.mark_non_differentiable(to, lse)
    ctx.save_for_backward(q, k, v, o, lse, attn_mask)


def _backward(ctx: Any, do: Tensor, _to: Any, _lse: Any) -> tuple[Tensor | None, ...]:
    q, k, v, o, lse, attn_mask = ctx.saved_tensors
    dq, dk, dv = torch.ops.scm_lightning.attention_dual_backward(
        do, q, k, v, o, lse, attn_mask, ctx.is_causal, ctx.scale
    )
    return (dq, dk, dv, *(None,) * 6)


attention_dual_op.register_autograd(_backward, setup_context=_keep)
