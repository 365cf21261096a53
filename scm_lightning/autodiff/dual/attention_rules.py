# SPDX-License-Identifier: Apache-2.0
"""Rules of attention: torch's fused primal with its own backward, our tangent beside it.

Both our `attention` and torch's `scaled_dot_product_attention` have the rule, so a network written
with either runs under dual numbers, at a memory linear in the tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm_lightning.autodiff.dual.carriers import (
    TangentError,
    is_dual,
    no_graph,
    primal_of,
    tangent_of,
)
from scm_lightning.autodiff.dual.forward_mode import by_forward_mode
from scm_lightning.autodiff.dual.rules import RULES, Unfit, entry
from scm_lightning.autodiff.jvp_attention import attention, attention_tangent, attention_with_lse


def attention_rule(
    func: Callable[..., Any],
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Any:
    """`attention`: tangents that are absent cost nothing.

    Raises:
        TangentError: if the mask has a tangent.
    """
    if is_dual(attn_mask):
        raise TangentError("attn_mask must be constant, got a tangent; detach it")
    tangents = tangent_of(q), tangent_of(k), tangent_of(v)
    values = primal_of(q), primal_of(k), primal_of(v)
    return _attend(*values, *tangents, attn_mask=attn_mask, is_causal=is_causal, scale=scale)


def sdpa_rule(
    func: Callable[..., Any],
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`scaled_dot_product_attention`; the formula itself for what the fused operators do not take.

    Dropout uses the formula too: only the fused operator knows the mask that it draws.
    """
    if dropout_p > 0 or is_dual(attn_mask) or not _four_axes(query, key, value, enable_gqa):
        if torch.compiler.is_compiling():
            raise Unfit
        given = (query, key, value, attn_mask, dropout_p, is_causal)
        with sdpa_kernel(SDPBackend.MATH):
            return by_forward_mode(func, given, {"scale": scale, "enable_gqa": enable_gqa})
    tq, tk, tv = tangent_of(query), tangent_of(key), tangent_of(value)
    q, k, v = primal_of(query), primal_of(key), primal_of(value)
    if enable_gqa and k.shape[1] != q.shape[1]:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        tk, tv = (None if x is None else x.repeat_interleave(groups, 1) for x in (tk, tv))
    return _attend(q, k, v, tq, tk, tv, attn_mask=attn_mask, is_causal=is_causal, scale=scale)


def _attend(q: Any, k: Any, v: Any, tq: Any, tk: Any, tv: Any, **options: Any) -> Any:
    o, lse = attention_with_lse(q, k, v, **options)
    with no_graph():
        return o, attention_tangent(q, k, v, tq, tk, tv, o, lse, **options)


def _four_axes(query: Any, key: Any, value: Any, enable_gqa: bool) -> bool:
    q, k, v = primal_of(query).shape, primal_of(key).shape, primal_of(value).shape
    heads = enable_gqa or (q[1:2] == k[1:2] == v[1:2])
    return len(q) == len(k) == len(v) == 4 and q[0] == k[0] == v[0] and heads


RULES[attention] = entry(attention_rule)
RULES[torch.nn.functional.scaled_dot_product_attention] = entry(sdpa_rule)
