# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN001, ANN201, ANN202  the arguments of a kernel are pointers and compile-time flags
# mypy: ignore-errors
r"""Triton kernels of the derivative of attention: one given o and lse, one for everything at once.

Tangent alone, with lse known, over key blocks j:
    P_j = exp(S_j - lse),   H_j = P_j * tS_j,   tS_j = scale (tq k_j^T + q tk_j^T)
    A  += P_j tv_j + H_j v_j,   mu += rowsum(H_j),      to = A - mu o

Both at once, with the running maximum x of the logits (a = exp(x_before - x)):
    P_j = exp(S_j - x),   l = a l + rowsum(P_j),   Y = a Y + P_j v_j
    A   = a A + P_j tv_j + H_j v_j,                mu = a mu + rowsum(H_j)
    o   = Y / l,   to = A / l - (mu / l) o,        lse = x + log l

P_j tv_j and H_j v_j share an accumulator: one fewer than in the paper's derivation. Logits are in
units of log 2 (exp2 is one instruction), their tangents are not. Accumulators are float32; P and H
are rounded to the data type of v; float32 is multiplied as three TF32 products on the tensor cores.
Rows are padded to a power of two features by masked loads.
Source: Lu and Song, arXiv 2410.11081, Appendix F; Dao, arXiv 2307.08691.
Axes: B batch, H heads, M queries, N keys, D features of q and k, DV features of v.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _place(M, H, BLOCK_M: tl.constexpr):
    """Sample, head and first query of this program; neighbours share their head's keys."""
    blocks = tl.cdiv(M, BLOCK_M)
    head = tl.program_id(0) // blocks
    return head // H, head % H, (tl.program_id(0) % blocks) * BLOCK_M


@triton.jit
def _at(pointer, strides, b, h, row):
    """Pointer to a row; 64 bits, because batches exceed 2^31 elements."""
    return pointer + b.to(tl.int64) * strides[0] + h.to(tl.int64) * strides[1] + row * strides[2]


@triton.jit
def _load(
    pointer, strides, b, h, row, limit, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN: tl.constexpr = False,
):  # fmt: skip
    """ROWS rows of features, zero from row `limit` on (EVEN: there is none) and beyond D."""
    rows = tl.arange(0, ROWS)[:, None]
    features = tl.arange(0, BLOCK_D)[None, :]
    pointers = _at(pointer, strides, b, h, row) + rows * strides[2] + features
    if EVEN and D == BLOCK_D:
        x = tl.load(pointers)
    elif EVEN:
        x = tl.load(pointers, mask=features < D, other=0.0)
    else:
        x = tl.load(pointers, mask=(rows < limit - row) & (features < D), other=0.0)
    return x


@triton.jit
def _store(
    pointer, strides, b, h, row, limit, x, ROWS: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Store rows of features, none from row `limit` on and nothing beyond D."""
    rows = tl.arange(0, ROWS)[:, None]
    features = tl.arange(0, BLOCK_D)[None, :]
    pointers = _at(pointer, strides, b, h, row) + rows * strides[2] + features
    there = (rows < limit - row) & (features < D)
    tl.store(pointers, x.to(pointer.dtype.element_ty), mask=there)


@triton.jit
def _load_lse(pointer, strides, b, h, row, limit, ROWS: tl.constexpr):
    """Log-sum-exp in units of log 2, huge where there is no key, so that exp2(S - lse) is 0."""
    rows = tl.arange(0, ROWS)
    pointers = _at(pointer, strides, b, h, row) + rows * strides[2]
    lse = tl.load(pointers, mask=rows < limit - row, other=0.0)
    return tl.where(lse == float("-inf"), 1.0e30, lse) * LOG2E


@triton.jit
def _logits(
    q, k, mask_pointer, mask_strides, b, h, m0, n0, M, N, scale, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, EVEN_N: tl.constexpr,
):  # fmt: skip
    """Logits of one block in units of log 2, -inf where attention is not allowed. (m, n)."""
    S = tl.dot(q, tl.trans(k), input_precision="tf32x3") * (scale * LOG2E)
    m = m0 + tl.arange(0, BLOCK_M)[:, None]
    n = n0 + tl.arange(0, BLOCK_N)[None, :]
    if MASK != "none":
        rows = tl.arange(0, BLOCK_M)[:, None] * mask_strides[2]
        pointers = _at(mask_pointer, mask_strides, b, h, m0) + rows + n * mask_strides[3]
        mask = tl.load(pointers, mask=(m < M) & (n < N), other=0)
        if MASK == "boolean":
            S = tl.where(mask != 0, S, float("-inf"))
        else:
            S += mask.to(tl.float32) * LOG2E
    if CAUSAL:
        S = tl.where(n <= m, S, float("-inf"))
    if not EVEN_N:
        S = tl.where(n < N, S, float("-inf"))
    return S


@triton.jit
def _logits_tangent(
    q, tq, k, TK, tk_strides, b, h, n0, N, scale, BLOCK_N: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, HAS_TQ: tl.constexpr, HAS_TK: tl.constexpr, EVEN_N: tl.constexpr,
):  # fmt: skip
    """Tangent of the logits of one block, in natural units. (m, n)."""
    if HAS_TQ:
        tS = tl.dot(tq, tl.trans(k), input_precision="tf32x3")
        if HAS_TK:
            tk = _load(TK, tk_strides, b, h, n0, N, BLOCK_N, D, BLOCK_D, EVEN_N)
            tS = tl.dot(q, tl.trans(tk), tS, input_precision="tf32x3")
    else:
        tk = _load(TK, tk_strides, b, h, n0, N, BLOCK_N, D, BLOCK_D, EVEN_N)
        tS = tl.dot(q, tl.trans(tk), input_precision="tf32x3")
    return tS * scale


@triton.jit
def tangent_only(
    Q, K, V, TQ, TK, TV, OUT, LSE, TO, MASK_POINTER,
    q_strides, k_strides, v_strides, tq_strides, tk_strides, tv_strides, o_strides, lse_strides,
    to_strides, mask_strides, H, M, N, scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, HAS_TQ: tl.constexpr, HAS_TK: tl.constexpr,
    HAS_TV: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, EVEN_N: tl.constexpr,
):  # fmt: skip
    """Tangent of BLOCK_M rows of o, given o and lse; one program per block and head."""
    b, h, m0 = _place(M, H, BLOCK_M)
    q = _load(Q, q_strides, b, h, m0, M, BLOCK_M, D, BLOCK_D)
    tq = q
    if HAS_TQ:
        tq = _load(TQ, tq_strides, b, h, m0, M, BLOCK_M, D, BLOCK_D)
    lse = _load_lse(LSE, lse_strides, b, h, m0, M, BLOCK_M)
    acc = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    mu = tl.zeros((BLOCK_M,), tl.float32)
    for n0 in range(0, tl.minimum(N, m0 + BLOCK_M) if CAUSAL else N, BLOCK_N):
        k = _load(K, k_strides, b, h, n0, N, BLOCK_N, D, BLOCK_D, EVEN_N)
        S = _logits(q, k, MASK_POINTER, mask_strides, b, h, m0, n0, M, N, scale,
                    BLOCK_M, BLOCK_N, MASK, CAUSAL, EVEN_N)  # fmt: skip
        P = tl.exp2(S - lse[:, None])
        if HAS_TV:
            tv = _load(TV, tv_strides, b, h, n0, N, BLOCK_N, DV, BLOCK_DV, EVEN_N)
            acc = tl.dot(P.to(tv.dtype), tv, acc, input_precision="tf32x3")
        if HAS_TQ or HAS_TK:
            P *= _logits_tangent(q, tq, k, TK, tk_strides, b, h, n0, N, scale,
                                 BLOCK_N, D, BLOCK_D, HAS_TQ, HAS_TK, EVEN_N)  # fmt: skip
            v = _load(V, v_strides, b, h, n0, N, BLOCK_N, DV, BLOCK_DV, EVEN_N)
            mu += tl.sum(P, 1)
            acc = tl.dot(P.to(v.dtype), v, acc, input_precision="tf32x3")
    o = _load(OUT, o_strides, b, h, m0, M, BLOCK_M, DV, BLOCK_DV)
    to = acc - mu[:, None] * o
    _store(TO, to_strides, b, h, m0, M, to, BLOCK_M, DV, BLOCK_DV)


@triton.jit
def both(
    Q, K, V, TQ, TK, TV, OUT, LSE, TO, MASK_POINTER,
    q_strides, k_strides, v_strides, tq_strides, tk_strides, tv_strides, o_strides, lse_strides,
    to_strides, mask_strides, H, M, N, scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, HAS_TQ: tl.constexpr, HAS_TK: tl.constexpr,
    HAS_TV: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, EVEN_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of o, of its tangent and of lse; one program per block and head."""
    b, h, m0 = _place(M, H, BLOCK_M)
    q = _load(Q, q_strides, b, h, m0, M, BLOCK_M, D, BLOCK_D)
    tq = q
    if HAS_TQ:
        tq = _load(TQ, tq_strides, b, h, m0, M, BLOCK_M, D, BLOCK_D)
    acc = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    acc_t = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mu = tl.zeros((BLOCK_M,), tl.float32)
    for n0 in range(0, tl.minimum(N, m0 + BLOCK_M) if CAUSAL else N, BLOCK_N):
        k = _load(K, k_strides, b, h, n0, N, BLOCK_N, D, BLOCK_D, EVEN_N)
        S = _logits(q, k, MASK_POINTER, mask_strides, b, h, m0, n0, M, N, scale,
                    BLOCK_M, BLOCK_N, MASK, CAUSAL, EVEN_N)  # fmt: skip
        P, top, alpha = _rescale(S, top)
        v = _load(V, v_strides, b, h, n0, N, BLOCK_N, DV, BLOCK_DV, EVEN_N)
        total = total * alpha + tl.sum(P, 1)
        acc = tl.dot(P.to(v.dtype), v, acc * alpha[:, None], input_precision="tf32x3")
        acc_t *= alpha[:, None]
        if HAS_TV:
            tv = _load(TV, tv_strides, b, h, n0, N, BLOCK_N, DV, BLOCK_DV, EVEN_N)
            acc_t = tl.dot(P.to(tv.dtype), tv, acc_t, input_precision="tf32x3")
        if HAS_TQ or HAS_TK:
            P *= _logits_tangent(q, tq, k, TK, tk_strides, b, h, n0, N, scale,
                                 BLOCK_N, D, BLOCK_D, HAS_TQ, HAS_TK, EVEN_N)  # fmt: skip
            mu = mu * alpha + tl.sum(P, 1)
            acc_t = tl.dot(P.to(v.dtype), v, acc_t, input_precision="tf32x3")
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    o = acc / total[:, None]
    to = acc_t / total[:, None] - (mu / total)[:, None] * o
    _store(OUT, o_strides, b, h, m0, M, o, BLOCK_M, DV, BLOCK_DV)
    _store(TO, to_strides, b, h, m0, M, to, BLOCK_M, DV, BLOCK_DV)
    lse = tl.where(empty, float("-inf"), top * LN2 + tl.log(total))
    _store_lse(LSE, lse_strides, b, h, m0, M, lse, BLOCK_M)


@triton.jit
def _rescale(S, top):
    """Weights of one block, new maximum, and the factor of what was summed under the old one."""
    new_top = tl.maximum(top, tl.max(S, 1))
    # A row without keys so far has maximum -inf, and -inf - -inf is NaN.
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    return tl.exp2(S - base[:, None]), new_top, tl.exp2(top - base)


@triton.jit
def _store_lse(pointer, strides, b, h, row, limit, lse, ROWS: tl.constexpr):
    """Store one number per row."""
    rows = tl.arange(0, ROWS)
    pointers = _at(pointer, strides, b, h, row) + rows * strides[2]
    tl.store(pointers, lse, mask=rows < limit - row)
