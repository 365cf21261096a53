# SPDX-License-Identifier: Apache-2.0
r"""Checks of attention's inputs, and masks in the one form that its implementations share.

    S = scale q k^T + mask,      P = exp(S - lse),      lse = log sum_n exp(S_n)

A boolean mask is True where attention is allowed (as in torch), an additive one is added to the
scaled logits. Causal means key n <= query m, aligned at the top left, also for M != N. A row whose
keys are all masked has o = 0, lse = -inf and no derivative. Whole rows must be masked by False or
-inf: beside a large negative number lse = log N + mask rounds to the mask.
Axes: B batch, H heads, M queries, N keys, D features of q and k, Dv features of v.
"""

import torch
from torch import Tensor

# Stands for lse of a fully masked row: exp(S - EMPTY_ROW) = 0, where exp(-inf - -inf) is NaN.
EMPTY_ROW = 1.0e30


def check_attention_inputs(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> None:
    """Refuse inputs that do not fit together.

    Args:
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
        v: values. (B, H, N, Dv).
        attn_mask: boolean or additive mask, broadcastable to (B, H, M, N), or None.
        is_causal: whether query m sees keys n <= m alone.

    Raises:
        ValueError: if shapes, data types or the mask do not fit.
    """
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"q, k and v must be (B, H, tokens, features), got {shapes}; reshape them")
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"q (B, H, M, D), k (B, H, N, D) and v (B, H, N, Dv) must share B, H, N and D, got "
            f"{shapes}; repeat shared heads first"
        )
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(
            f"q, k and v must share one floating data type, got {q.dtype}, {k.dtype}, {v.dtype}; "
            "cast them first"
        )
    if attn_mask is not None and is_causal:
        raise ValueError(
            "attn_mask and is_causal exclude each other, as in torch, got both; put the triangle "
            "into the mask"
        )


def expand_mask(attn_mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """View of a mask with all four axes, without a copy. (B, H, M, N).

    Args:
        attn_mask: boolean or floating mask, broadcastable to (B, H, M, N).
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).

    Raises:
        ValueError: if the mask does not broadcast, or is neither boolean nor floating.
    """
    full = (*q.shape[:3], k.shape[2])
    fits = attn_mask.ndim <= 4 and all(
        have in (1, want) for have, want in zip(attn_mask.shape[::-1], full[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"attn_mask must broadcast to (B, H, M, N) = {full}, got {tuple(attn_mask.shape)}; "
            "insert axes of size 1"
        )
    if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise ValueError(
            f"attn_mask must be boolean or floating, got {attn_mask.dtype}; use mask.bool() for "
            "True where attention is allowed"
        )
    return attn_mask.expand(full)


def rows_with_keys(attn_mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Mask of the queries that see any key at all. (B, H, M, 1), boolean.

    Args:
        attn_mask: boolean or additive mask, broadcastable to (B, H, M, N).
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
    """
    allowed = attn_mask if attn_mask.dtype == torch.bool else attn_mask != -torch.inf
    return allowed.any(-1, keepdim=True).expand(*q.shape[:3], 1)


def additive_mask(attn_mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Mask to be added to the logits, with zeros in rows that see no key. (B, H, M, N), a view.

    Such rows attend to everything here and are set to zero afterwards: no kernel has then to divide
    by an empty sum, forward or backward.

    Args:
        attn_mask: boolean or additive mask, broadcastable to (B, H, M, N).
        q: queries, whose data type the result has. (B, H, M, D).
        k: keys. (B, H, N, D).
    """
    expand_mask(attn_mask, q, k)
    if attn_mask.dtype == torch.bool:
        empty = ~attn_mask.any(-1, keepdim=True)
        zeros = torch.zeros(attn_mask.shape, dtype=q.dtype, device=q.device)
        return expand_mask(zeros.masked_fill(~(attn_mask | empty), -torch.inf), q, k)
    empty = (attn_mask == -torch.inf).all(-1, keepdim=True)
    return expand_mask(attn_mask.masked_fill(empty, 0.0).to(q.dtype), q, k)


def causal_mask(num_queries: int, num_keys: int, device: torch.device, offset: int = 0) -> Tensor:
    """Boolean triangle, True where key n <= query m + offset. (M, N)."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(offset)


def finite_lse(lse: Tensor) -> Tensor:
    """Log-sum-exp with which fully masked rows get P = 0 instead of NaN.

    Args:
        lse: natural log-sum-exp, -inf in fully masked rows. (B, H, M).
    """
    return lse.masked_fill(lse == -torch.inf, EMPTY_ROW)


def adjacent_features(x: Tensor) -> Tensor:
    """Same values with features next to each other: fused operators read x so without asking.

    Args:
        x: any tensor; copied only if its last stride is not 1.
    """
    return x if x.stride(-1) == 1 else x.contiguous()
