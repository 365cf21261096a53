# SPDX-License-Identifier: Apache-2.0
"""Rules of attention: torch's fused primal with its own backward, our tangent beside it.

Both our `attention` and torch's `scaled_dot_product_attention` have the rule, so a network written
with either runs under dual numbers, at a memory linear in the tokens.
"""

from collections.abc import Callable
from typing import Any

import torch

from scm_lightning.autodiff.dual.number import RULES, Dual, dual, is_dual, primal_of, tangent_of
from scm_lightning.autodiff.jvp_attention import attention_tangent, attention_with_lse


def attention_rule(
    func: Callable[..., Any],
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Dual:
    """`attention`: tangents that are absent cost nothing.

    Raises:
        ValueError: if the mask has a tangent.
    """
    if is_dual(attn_mask):
        raise ValueError("attn_mask must be constant under dual numbers, got a tangent; detach it")
    options: Any = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale}
    tq, tk, tv = tangent_of(q), tangent_of(k), tangent_of(v)
    q, k, v = primal_of(q), primal_of(k), primal_of(v)
    o, lse = attention_with_lse(q, k, v, **options)
    with torch.no_grad():
        return dual(o, attention_tangent(q, k, v, tq, tk, tv, o, lse, **options))


def sdpa_rule(
    func: Callable[..., Any],
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Dual:
    """`scaled_dot_product_attention`.

    Raises:
        ValueError: if it drops out attention weights, whose mask torch's fused kernel keeps to
            itself.
    """
    if dropout_p > 0:
        raise ValueError(
            f"attention under dual numbers cannot drop out its weights, got dropout_p {dropout_p}; "
            "drop out the output, or use the tangent method two_pass"
        )
    if enable_gqa:
        groups = q.size(-3) // k.size(-3)
        k, v = k.repeat_interleave(groups, -3), v.repeat_interleave(groups, -3)
    return attention_rule(func, q, k, v, attn_mask, is_causal, scale)


RULES.update({"attention": attention_rule, "scaled_dot_product_attention": sdpa_rule})
