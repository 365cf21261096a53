# SPDX-License-Identifier: Apache-2.0
r"""The derivative of attention as it is written down, with all M N weights in memory.

    P  = exp(S - lse),   S = scale q k^T + mask,   tS = scale (tq k^T + q tk^T)
    to = (P * tS) v + P tv - rowsum(P * tS) o

Source: Lu and Song, arXiv 2410.11081, Appendix F. The oracle of the other implementations.
Axes: B batch, H heads, M queries, N keys, D features of q and k, Dv features of v.
"""

import torch
from torch import Tensor

from scm_lightning.autodiff.jvp_attention.masks import causal_mask, expand_mask, finite_lse
from scm_lightning.core import at_least_float32


def reference(
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
    """Derivative of the attention output, dense.

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

    Returns:
        Tangent of o, in its data type. (B, H, M, Dv).

    Source: arXiv 2410.11081, Appendix F.
    """
    P = scale * at_least_float32(q) @ at_least_float32(k).mT
    if attn_mask is not None:
        mask = expand_mask(attn_mask, q, k)
        boolean = mask.dtype == torch.bool
        P = P.masked_fill(~mask, -torch.inf) if boolean else P + mask
    if is_causal:
        P = P.masked_fill(~causal_mask(P.shape[-2], P.shape[-1], P.device), -torch.inf)
    P = (P - finite_lse(lse)[..., None]).exp()
    tS = torch.zeros_like(P)
    if tq is not None:
        tS += scale * at_least_float32(tq) @ at_least_float32(k).mT
    if tk is not None:
        tS += scale * at_least_float32(q) @ at_least_float32(tk).mT
    to = (P * tS) @ at_least_float32(v) - (P * tS).sum(-1, keepdim=True) * o
    if tv is not None:
        to += P @ at_least_float32(tv)
    return to.to(o.dtype)
