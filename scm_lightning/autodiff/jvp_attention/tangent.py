# SPDX-License-Identifier: Apache-2.0
r"""The derivative of attention as one operator, whatever computes it.

    to = (P * tS) v + P tv - rowsum(P * tS) o,   P = exp(S - lse),   tS = scale (tq k^T + q tk^T)

The operator takes primals and tangents as arguments, because a custom operator under forward-mode
differentiation silently has tangent zero, and so has a custom jvp under torch.compile. Its result
has no gradient. On CUDA with Triton it is one kernel, else a loop over blocks.
Source: Lu and Song, arXiv 2410.11081, Appendix F.
Axes: B batch, H heads, M queries, N keys, D features of q and k, Dv features of v.
"""

import torch
from torch import Tensor

from scm_lightning.autodiff.jvp_attention.blockwise import blockwise
from scm_lightning.autodiff.jvp_attention.masks import check_attention_inputs, expand_mask
from scm_lightning.autodiff.jvp_attention.primal import autocast_like_torch
from scm_lightning.autodiff.jvp_attention.triton_launch import find_tile, tangent_kernel


def attention_tangent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    o: Tensor,
    lse: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Differentiate attention forward, along (tq, tk, tv); the mask is constant.

    Args:
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
        v: values. (B, H, N, Dv).
        tq: tangent of q, or None where it is zero. (B, H, M, D).
        tk: tangent of k, or None. (B, H, N, D).
        tv: tangent of v, or None. (B, H, N, Dv).
        o: output of `attention_with_lse` at the same arguments. (B, H, M, Dv).
        lse: its log-sum-exp. (B, H, M).
        attn_mask: boolean (True attends) or additive, broadcastable to (B, H, M, N), or None.
        is_causal: whether query m sees keys n <= m alone, aligned at the top left.
        scale: factor of q k^T; 1 / sqrt(D) if None.

    Returns:
        Tangent of o without gradient, in its data type; zero in fully masked rows. (B, H, M, Dv).

    Raises:
        ValueError: if shapes, data types or the mask do not fit.

    Source: arXiv 2410.11081, Appendix F.
    """
    q, k, v = autocast_like_torch(q, k, v)
    check_attention_inputs(q, k, v, attn_mask, is_causal)
    if o.shape != (*q.shape[:3], v.shape[3]) or lse.shape != q.shape[:3]:
        raise ValueError(
            f"o and lse must be {(*q.shape[:3], v.shape[3])} and {tuple(q.shape[:3])}, got "
            f"{tuple(o.shape)} and {tuple(lse.shape)}; take both from attention_with_lse"
        )
    tq, tk, tv = prepare_tangents((q, k, v), (tq, tk, tv))
    if attn_mask is not None:
        expand_mask(attn_mask, q, k)
        attn_mask = attn_mask.detach()
    if tq is None and tk is None and tv is None:
        return torch.zeros_like(o, requires_grad=False)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v, o, lse = (x.detach() for x in (q, k, v, o, lse))
    to: Tensor = torch.ops.scm_lightning.attention_tangent(
        q, k, v, tq, tk, tv, o, lse, attn_mask, is_causal, scale
    )
    return to


def prepare_tangents(
    primals: tuple[Tensor, Tensor, Tensor],
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> list[Tensor | None]:
    """Tangents without gradient, in the data types of their primals.

    Args:
        primals: q, k and v.
        tangents: their tangents, or None.

    Raises:
        ValueError: if a tangent has another shape than its primal.
    """
    prepared: list[Tensor | None] = []
    for name, primal, tangent in zip("qkv", primals, tangents, strict=True):
        if tangent is not None and tangent.shape != primal.shape:
            raise ValueError(
                f"the tangent of {name} must have its shape {tuple(primal.shape)}, got "
                f"{tuple(tangent.shape)}; pass None where it is zero"
            )
        prepared.append(None if tangent is None else tangent.detach().to(primal.dtype))
    return prepared


@torch.library.custom_op("scm_lightning::attention_tangent", mutates_args=())
def attention_tangent_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    o: Tensor,
    lse: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> Tensor:
    """The operator behind `attention_tangent`; every argument given, in one data type."""
    tile = find_tile("tangent", q, v, masked=attn_mask is not None)
    if tile is None:
        return blockwise(q, k, v, tq, tk, tv, o, lse, attn_mask, is_causal, scale)
    return tangent_kernel(q, k, v, tq, tk, tv, o, lse, attn_mask, is_causal, scale, tile)


@attention_tangent_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    o: Tensor,
    lse: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> Tensor:
    return torch.empty_like(o)
