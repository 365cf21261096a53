# SPDX-License-Identifier: Apache-2.0
r"""The derivative of attention by blocks of queries and keys, in torch operations: linear memory.

    P_b  = exp(S_b - lse),   S_b = scale q k_b^T + mask_b,   tS_b = scale [tq, q] [k_b, tk_b]^T
    to   = sum_b (P_b * tS_b) v_b + P_b tv_b  -  (sum_b rowsum(P_b * tS_b)) o

With lse known every block is final: nothing is rescaled. Blocks are of a size at which P_b and tS_b
stay in the cache of one core; float16 and bfloat16 are computed in float32.
Source: Lu and Song, arXiv 2410.11081, Appendix F.
Axes: B batch, H heads, M queries, N keys, D features of q and k, Dv features of v.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from scm_lightning.autodiff.jvp_attention.masks import causal_mask, expand_mask, finite_lse
from scm_lightning.core import at_least_float32

BLOCK_M = 512  # queries; with BLOCK_N, P_b and tS_b take 0.5 MB each in float32
BLOCK_N = 256  # keys
HEADS_ON_GPU = 64  # at a time, to fill the device: 34 MB each


def blockwise(
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
    block_m: int = BLOCK_M,
    block_n: int = BLOCK_N,
) -> Tensor:
    """Derivative of the attention output, by blocks; arguments and result as of `reference`.

    Args:
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
        v: values. (B, H, N, Dv).
        tq: tangent of q, or None where it is zero. (B, H, M, D).
        tk: tangent of k, or None. (B, H, N, D).
        tv: tangent of v, or None. (B, H, N, Dv).
        o: attention output. (B, H, M, Dv).
        lse: natural log-sum-exp, -inf in fully masked rows. (B, H, M).
        attn_mask: boolean or additive, broadcastable to (B, H, M, N), or None.
        is_causal: whether query m sees keys n <= m alone.
        scale: factor of q k^T.
        block_m: queries at a time.
        block_n: keys at a time.

    Returns:
        Tangent of o, in its data type and layout. (B, H, M, Dv).

    Source: arXiv 2410.11081, Appendix F.
    """
    mask = None if attn_mask is None else expand_mask(attn_mask, q, k)
    M, N = q.shape[2], k.shape[2]
    lse = finite_lse(lse)[..., None]
    to = torch.empty_like(o)
    budget = block_m * block_n * (HEADS_ON_GPU if q.is_cuda else 1)
    for some in _heads(q, min(M, block_m) * min(N, block_n), budget):
        keys = _Keys(k[some], v[some], _at(tk, some), _at(tv, some), tq is not None, scale)
        for m in range(0, M, block_m):
            rows = (*some, slice(m, m + block_m))
            acc = torch.zeros(o[rows].shape, dtype=keys.v.dtype, device=o.device)
            moment = torch.zeros_like(acc[..., :1])
            queries = _queries(q[rows], _at(tq, rows), tk is not None)
            for n in range(0, min(N, m + block_m) if is_causal else N, block_n):
                cut = slice(n, n + block_n)
                bias = None if mask is None else mask[rows][..., cut]
                if is_causal and n + block_n > m:
                    bias = causal_mask(acc.shape[2], min(block_n, N - n), q.device, m - n)
                moment += keys.add_block(acc, queries, lse[rows], bias, cut)
            to[rows] = acc.sub_(moment.mul(o[rows]))
    return to


class _Keys:
    """Keys, values and their tangents of some heads, laid out for the products with queries.

    Args:
        k: keys. (b, h, N, D).
        v: values. (b, h, N, Dv).
        tk: tangent of k or None.
        tv: tangent of v or None.
        with_tq: whether queries will have tangents.
        scale: factor of the logits; put onto the keys once.
    """

    def __init__(
        self,
        k: Tensor,
        v: Tensor,
        tk: Tensor | None,
        tv: Tensor | None,
        with_tq: bool,
        scale: float,
    ) -> None:
        self.k = at_least_float32(k) * scale
        self.v = at_least_float32(v).contiguous()
        self.tv = None if tv is None else at_least_float32(tv).contiguous()
        tk = None if tk is None else at_least_float32(tk) * scale
        parts = [x for x in (self.k if with_tq else None, tk) if x is not None]
        self.paired = torch.cat(parts, -1) if parts else None

    def add_block(
        self,
        acc: Tensor,
        queries: tuple[Tensor, Tensor | None],
        lse: Tensor,
        bias: Tensor | None,
        cut: slice,
    ) -> Tensor | float:
        """Add one block of keys to the tangent; return the block's sum of P * tS.

        Args:
            acc: tangent so far, changed in place. (b, h, m, Dv).
            queries: queries, and what the paired keys are multiplied by.
            lse: finite log-sum-exp. (b, h, m, 1).
            bias: boolean or additive mask of the block, or None. (b, h, m, n) or (m, n).
            cut: the block's keys.
        """
        q, paired = queries
        P = torch.matmul(q, self.k[:, :, cut].mT).sub_(lse)
        if bias is not None:
            boolean = bias.dtype == torch.bool
            P = P.masked_fill_(~bias, -torch.inf) if boolean else P.add_(bias)
        P.exp_()
        if self.tv is not None:
            acc += torch.matmul(P, self.tv[:, :, cut])
        if self.paired is None or paired is None:
            return 0.0
        H = torch.matmul(paired, self.paired[:, :, cut].mT).mul_(P)
        acc += torch.matmul(H, self.v[:, :, cut])
        return H.sum(-1, keepdim=True)


def _queries(q: Tensor, tq: Tensor | None, with_tk: bool) -> tuple[Tensor, Tensor | None]:
    """Queries, and [tq, q] reduced to the parts whose partners exist. (b, h, m, D or 2 D)."""
    q = at_least_float32(q)
    parts = [None if tq is None else at_least_float32(tq), q if with_tk else None]
    present = [x for x in parts if x is not None]
    return q, torch.cat(present, -1) if present else None


def _heads(q: Tensor, per_head: int, budget: int) -> Iterator[tuple[slice, slice]]:
    """Samples and heads to be computed together: many if their blocks are small, at least one."""
    B, H = q.shape[:2]
    heads = max(1, min(H, budget // max(1, per_head)))
    samples = max(1, budget // max(1, per_head * H))
    for b in range(0, B, samples):
        for h in range(0, H, heads):
            yield slice(b, b + samples), slice(h, h + heads)


def _at(x: Tensor | None, where: tuple[slice, ...]) -> Tensor | None:
    return None if x is None else x[where]
