# SPDX-License-Identifier: Apache-2.0
r"""The attention that networks call: torch's own, with a forward derivative of linear memory.

    o = softmax(scale q k^T + mask) v

Plain tensors go to `scaled_dot_product_attention` unchanged; classes with __torch_function__ (dual
numbers) receive the call; tensors that carry a forward-mode tangent, as inside torch.func.jvp, for
which torch's fused attention has no formula, are split into primal and tangent here.
Axes: B batch, H heads, M queries, N keys, D features of q and k, Dv features of v.
"""

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.overrides import handle_torch_function, has_torch_function

from scm_lightning.autodiff.jvp_attention.primal import attention_with_lse
from scm_lightning.autodiff.jvp_attention.tangent import attention_tangent


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attend as `scaled_dot_product_attention` does, with a derivative in forward mode too.

    Under forward mode the result's primal keeps its reverse graph and the tangent has none: a
    gradient of the tangent, or a second forward level, is not computed.

    Args:
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
        v: values. (B, H, N, Dv).
        attn_mask: boolean (True attends) or additive, broadcastable to (B, H, M, N), or None.
        is_causal: whether query m sees keys n <= m alone, aligned at the top left.
        scale: factor of q k^T; 1 / sqrt(D) if None.

    Returns:
        o. (B, H, M, Dv).

    Raises:
        ValueError: if forward mode meets torch.compile, forward levels are nested, or the mask has
            a tangent.
    """
    if has_torch_function((q, k, v)):
        o: Tensor = handle_torch_function(
            attention, (q, k, v), q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale
        )
        return o
    if _in_forward_mode() and any(_carries_tangent(x) for x in (q, k, v, attn_mask)):
        return _forward_mode(q, k, v, attn_mask, is_causal, scale)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale
    )


def _in_forward_mode() -> bool:
    """Tell whether a forward level is open, that of torch.func.jvp included."""
    return forward_ad._current_level >= 0


def _carries_tangent(x: Tensor | None) -> bool:
    return x is not None and _split(x)[1] is not None


def _split(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Primal and tangent at the current forward level."""
    primal, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return primal, tangent


def _forward_mode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """Primal by the fused operator, tangent by ours, joined again."""
    if torch.compiler.is_compiling():
        raise ValueError(
            "attention in torch.func.jvp cannot be compiled: the compiler drops its tangent "
            "silently; compile the dual numbers of scm_lightning.autodiff, or do not compile"
        )
    levels = [each.key() for each in retrieve_all_functorch_interpreters()]
    if levels.count(TransformType.Jvp) > 1:
        raise ValueError(
            "attention has one forward derivative, got nested torch.func.jvp; write the formula out"
        )
    if _carries_tangent(attn_mask):
        raise ValueError("attn_mask must be constant in forward mode, got a tangent; detach it")
    (q, tq), (k, tk), (v, tv) = (_split(x) for x in (q, k, v))
    o, lse = attention_with_lse(q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale)
    to = attention_tangent(
        q, k, v, tq, tk, tv, o, lse, attn_mask=attn_mask, is_causal=is_causal, scale=scale
    )
    joined: Tensor = forward_ad.make_dual(o, to)  # type: ignore[no-untyped-call]
    return joined
