# SPDX-License-Identifier: Apache-2.0
"""The derivative of attention: dense against torch and differences, by blocks against dense."""

from itertools import product

import pytest
import torch
from torch.nn.functional import pad

from scm_lightning.autodiff.jvp_attention import attention_tangent, attention_with_lse
from scm_lightning.autodiff.jvp_attention.blockwise import blockwise
from scm_lightning.autodiff.jvp_attention.reference import reference

B, H, M, N, D, DV = 2, 3, 21, 13, 8, 5  # unlike each other; M and N no multiples of a block
SCALE = 0.23
SUBSETS = [subset for subset in product([True, False], repeat=3) if any(subset)]


def draw(randn, dv=DV, spread=1.0):
    """q, k, v and their tangents; `spread` multiplies the logits."""
    q, k, v = randn(B, H, M, D), randn(B, H, N, D) * spread, randn(B, H, N, dv)
    return [q, k, v], [randn(B, H, M, D), randn(B, H, N, D), randn(B, H, N, dv)]


def masks(randn):
    """Boolean with a fully masked row, a bias per head, keys dropped by -inf, none."""
    boolean = randn(B, 1, M, N) > -0.3
    boolean[:, :, 4] = False
    padding = torch.zeros(B, 1, 1, N, dtype=torch.float64)
    padding[1, ..., 5:] = -torch.inf
    return {"boolean": boolean, "bias": 2 * randn(H, M, N), "padding": padding, "none": None}


def dense(q, k, v, mask=None, is_causal=False):
    """The definition, in operations that torch differentiates forward."""
    S = SCALE * q @ k.mT
    if mask is not None:
        S = S.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else S + mask
    if is_causal:
        S = S.masked_fill(torch.arange(N) > torch.arange(M)[:, None], -torch.inf)
    return S.softmax(-1) @ v


def given(randn, mask, is_causal, dv=DV, spread=1.0):
    """Arguments of `reference` and `blockwise`."""
    primals, tangents = draw(randn, dv, spread)
    o, lse = attention_with_lse(*primals, attn_mask=mask, is_causal=is_causal, scale=SCALE)
    return [*primals, *tangents, o, lse, mask, is_causal, SCALE]


@pytest.mark.parametrize("dv", [DV, D])
@pytest.mark.parametrize("name", ["boolean", "bias", "padding", "none", "causal"])
def test_dense_and_blocks_are_the_derivative_that_torch_computes(randn, name, dv):
    """Against torch.func.jvp of the definition; fully masked rows are set to zero."""
    is_causal = name == "causal"
    mask = None if is_causal else masks(randn)[name]
    args = given(randn, mask, is_causal, dv)
    o, expected = torch.func.jvp(
        lambda q, k, v: dense(q, k, v, mask, is_causal), tuple(args[:3]), tuple(args[3:6])
    )
    if name == "boolean":
        assert o[:, :, 4].isnan().all()
        assert not args[6][:, :, 4].any()
        assert (args[7][:, :, 4] == -torch.inf).all()
    o, expected = o.nan_to_num(), expected.nan_to_num()
    torch.testing.assert_close(args[6], o, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reference(*args), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(blockwise(*args), expected, rtol=1e-12, atol=1e-12)
    assert float(expected.abs().max()) > 0.1


def test_reference_against_central_differences(randn):
    args, h = given(randn, None, False), 1e-5
    q, k, v, tq, tk, tv = args[:6]
    ahead = dense(q + h * tq, k + h * tk, v + h * tv)
    behind = dense(q - h * tq, k - h * tk, v - h * tv)
    torch.testing.assert_close(reference(*args), (ahead - behind) / (2 * h), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("blocks", [(4, 3), (8, 64), (64, 5)])
@pytest.mark.parametrize("name", ["boolean", "bias", "causal"])
def test_blocks_add_up_for_every_subset_of_tangents(randn, subset, blocks, name):
    """An absent tangent is a zero one; blocks that do not divide M and N."""
    is_causal = name == "causal"
    args = given(randn, None if is_causal else masks(randn)[name], is_causal)
    args[3:6] = [t if there else None for t, there in zip(args[3:6], subset, strict=True)]
    zeros = [torch.zeros_like(p) if t is None else t for p, t in zip(args, args[3:6], strict=False)]
    expected = reference(*args[:3], *zeros, *args[6:])
    for actual in (reference(*args), blockwise(*args, *blocks)):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert float(expected.abs().max()) > 0.1


@pytest.mark.parametrize(("num_queries", "num_keys"), [(21, 13), (13, 21), (1, 13), (21, 1)])
def test_causal_blocks_are_aligned_at_the_top_left(randn, num_queries, num_keys):
    """As torch: query m sees keys n <= m, whichever is longer, whatever block is skipped."""
    q, tq = randn(B, H, num_queries, D), randn(B, H, num_queries, D)
    k, v, tk, tv = (randn(B, H, num_keys, D) for _ in range(4))
    triangle = torch.arange(num_keys) <= torch.arange(num_queries)[:, None]
    o, lse = attention_with_lse(q, k, v, is_causal=True)
    expected = attention_tangent(q, k, v, tq, tk, tv, o, lse, attn_mask=triangle)
    for blocks in ((4, 3), (3, 8), (64, 64)):
        actual = blockwise(q, k, v, tq, tk, tv, o, lse, None, True, D**-0.5, *blocks)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("spread", [1.0, 80.0])
def test_lower_precision_stays_near_float64(randn, dtype, spread):
    """Relative to the float64 derivative of the rounded inputs, small and large logits.

    A few roundings to `dtype`; and logits are rounded to float32, by eps / 2 of their size, which
    is a relative error of the weights. Measured: 1.4 eps for small ones.
    """
    primals, tangents = draw(randn, D, spread)
    rounded = [x.to(dtype) for x in (*primals, *tangents)]
    o, lse = attention_with_lse(*rounded[:3], scale=SCALE)
    actual = attention_tangent(*rounded, o, lse, scale=SCALE)
    exact = [x.double() for x in rounded]
    _, expected = torch.func.jvp(dense, tuple(exact[:3]), tuple(exact[3:]))
    assert actual.dtype == o.dtype == dtype
    assert lse.dtype == torch.float32
    error = (actual.double() - expected).norm() / expected.norm()
    largest = (SCALE * exact[0] @ exact[1].mT).abs().max()
    bound = 8 * torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps * largest
    assert 0 < float(error) < bound


def test_layout_of_packed_projections_changes_nothing(randn):
    """Views into (B, tokens, 3, H, D), as networks make them, with NaN on all sides."""
    packed = pad(randn(B, N, 3, H, D), (1, 1, 1, 1, 1, 1, 1, 1), value=torch.nan)
    views = packed[:, 1:-1, 1:-1, 1:-1, 1:-1].permute(2, 0, 3, 1, 4)
    q, k, v = views
    o, lse = attention_with_lse(q, k, v)
    actual = attention_tangent(q, k, v, v, q, k, o, lse)
    args = (x.contiguous() for x in (q, k, v, v, q, k, o, lse))
    torch.testing.assert_close(actual, attention_tangent(*args))
    assert actual.isfinite().all()


def peak_mb(call):
    """Largest sum of live allocations during a call, MB, from the allocator's own events."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak / 2**20


def test_memory_is_linear_in_the_tokens():
    """1,024 and 4,096 tokens: four times, where the dense formula takes sixteen times."""

    def peak(function, tokens):
        x = torch.randn(1, 2, tokens, 16, generator=torch.Generator().manual_seed(0))
        o, lse = attention_with_lse(x, x, x)
        return peak_mb(lambda: function(x, x, x, x, x, x, o, lse, None, False, 0.25))

    assert peak(blockwise, 4096) < 4.4 * peak(blockwise, 1024)
    assert peak(blockwise, 4096) < 8.0
    assert peak(reference, 2048) > 3.5 * peak(reference, 1024)  # the measure can tell


def test_misfits_are_refused(randn):
    args = given(randn, None, False)
    with pytest.raises(ValueError, match=r"tangent of q must have its shape \(2, 3, 21, 8\)"):
        attention_tangent(*args[:3], args[3][:1], None, None, *args[6:8])
    with pytest.raises(ValueError, match="take both from attention_with_lse"):
        attention_tangent(*args[:6], args[7], args[6])
    with pytest.raises(ValueError, match=r"must broadcast to \(B, H, M, N\) = \(2, 3, 21, 13\)"):
        attention_tangent(*args[:8], attn_mask=torch.ones(N, M, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"boolean or floating, got torch\.int64"):
        attention_tangent(*args[:8], attn_mask=torch.ones(M, N, dtype=torch.int64))


def test_without_tangents_the_derivative_is_zero(randn):
    args = given(randn, None, False)
    to = attention_tangent(*args[:3], None, None, None, *args[6:8])
    assert torch.equal(to, torch.zeros_like(args[6]))
