# SPDX-License-Identifier: Apache-2.0
"""Attention with log-sum-exp: values, gradients, masks; and the one that returns the tangent."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from scm_lightning.autodiff.jvp_attention import (
    attention_tangent,
    attention_with_lse,
    fused_attention_with_tangent,
)
from scm_lightning.autodiff.jvp_attention.fused import backward_from_lse
from scm_lightning.autodiff.jvp_attention.masks import additive_mask, finite_lse
from scm_lightning.autodiff.jvp_attention.primal import align_bias, choose_backend

B, H, M, N, D = 2, 3, 7, 5, 8


def inputs(randn, dv=D, num_keys=N):
    shapes = ((B, H, M, D), (B, H, num_keys, D), (B, H, num_keys, dv))
    return [randn(*shape).requires_grad_() for shape in shapes]


def mask_of(randn, name):
    """A boolean mask with one empty row, a bias with the same, or none."""
    allowed = randn(M, N) > -0.3
    allowed[3] = False
    bias = randn(B, 1, M, N).masked_fill(~allowed, -torch.inf)
    return {"boolean": allowed, "bias": bias, "none": None, "causal": None}[name]


def fused(q, k, v, **options):
    """The other implementation, without tangents."""
    o, to, lse = fused_attention_with_tangent(q, k, v, None, None, None, **options)
    assert not to.requires_grad
    assert not to.any()
    return o, lse


@pytest.mark.parametrize("attend", [attention_with_lse, fused])
@pytest.mark.parametrize("name", ["boolean", "bias", "none", "causal"])
@pytest.mark.parametrize(("dv", "scale"), [(D, None), (4, 0.3)])
def test_values_gradients_and_lse(randn, attend, name, dv, scale):
    """Against torch's math in float64, by gradcheck, and lse by its definition."""
    q, k, v = inputs(randn, dv)
    options = {"attn_mask": mask_of(randn, name), "is_causal": name == "causal", "scale": scale}
    o, lse = attend(q, k, v, **options)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(o, expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *x: attend(*x, **options)[0], (q, k, v))
    assert not lse.requires_grad
    S = (D**-0.5 if scale is None else scale) * q @ k.mT
    if name == "causal":
        S = S.masked_fill(torch.arange(N) > torch.arange(M)[:, None], -torch.inf)
    elif name != "none":
        S = S + (options["attn_mask"].double().log() if name == "boolean" else options["attn_mask"])
    torch.testing.assert_close(lse, S.logsumexp(-1).detach(), rtol=1e-12, atol=1e-12)
    if options["attn_mask"] is not None:
        assert (lse[:, :, 3] == -torch.inf).all()
        assert not o[:, :, 3].any()


@pytest.mark.parametrize("attend", [attention_with_lse, fused])
def test_empty_rows_leave_no_nan_in_any_gradient(randn, attend):
    q, k, v = inputs(randn)
    o, _ = attend(q, k, v, attn_mask=torch.zeros(M, N, dtype=torch.bool))
    (o + 1).square().sum().backward()
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in (q, k, v))


def test_a_bias_that_is_trained_gets_its_gradient(randn):
    q, k, v = (x.detach() for x in inputs(randn))
    bias = randn(H, M, N).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: attention_with_lse(q, k, v, attn_mask=b)[0], bias)


@pytest.mark.parametrize("name", ["boolean", "bias", "none", "causal"])
def test_backward_by_blocks_of_queries_is_the_native_one(randn, name):
    """More queries than a block holds; what CUDA falls back to."""
    q, k, v, do = (randn(B, 1, 600, D) for _ in range(4))
    mask = None
    if name in ("boolean", "bias"):
        mask = randn(600, 600) > 0 if name == "boolean" else randn(1, 1, 1, 600)
        if name == "boolean":
            mask[3] = False
    causal = name == "causal"
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    o, lse = attention_with_lse(*leaves, attn_mask=mask, is_causal=causal)
    expected = torch.autograd.grad(o, leaves, do)
    added = None if mask is None else additive_mask(mask, q, k)
    actual = backward_from_lse(do, q, k, v, o.detach(), finite_lse(lse), added, causal, D**-0.5)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["boolean", "bias", "none", "causal"])
def test_one_pass_equals_two(randn, name):
    """o, its tangent, lse and the gradients, for a tangent of q alone and for all."""
    q, k, v = inputs(randn)
    tq, tk, tv = (torch.cos(x.detach()) for x in (q, k, v))
    options = {"attn_mask": mask_of(randn, name), "is_causal": name == "causal"}
    for tangents in ((tq, tk, tv), (tq, None, None)):
        o, lse = attention_with_lse(q, k, v, **options)
        to = attention_tangent(q, k, v, *tangents, o, lse, **options)
        expected = [o, to, lse, *torch.autograd.grad(o.square().sum(), (q, k, v))]
        o, to, lse = fused_attention_with_tangent(q, k, v, *tangents, **options)
        actual = [o, to, lse, *torch.autograd.grad(o.square().sum(), (q, k, v))]
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        assert not to.requires_grad
        assert float(to.abs().max()) > 0.1


@pytest.mark.parametrize("attend", [attention_with_lse, fused])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_features_that_are_not_adjacent(randn, attend, which):
    """torch's operator reads past them without asking; and a gradient whose strides are zero."""
    leaves = inputs(randn)
    dense = [x.detach().clone().requires_grad_() for x in leaves]
    views = [x.mT.contiguous().mT if i == which else x for i, x in enumerate(leaves)]
    assert views[which].stride(-1) != 1
    o, _ = attend(*views)
    expected = (dense[0] @ dense[1].mT * D**-0.5).softmax(-1) @ dense[2]
    torch.testing.assert_close(o, expected, rtol=1e-12, atol=1e-12)
    actual = torch.autograd.grad(o.sum(), leaves)
    gradients = torch.autograd.grad(expected.sum(), dense)
    torch.testing.assert_close(actual, gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(0, 3), (3, 0)])
def test_no_queries_or_no_keys(randn, num_queries, num_keys):
    q, k, v = randn(B, H, num_queries, D), randn(B, H, num_keys, D), randn(B, H, num_keys, D)
    o, lse = attention_with_lse(q, k, v)
    to = attention_tangent(q, k, v, q, k, v, o, lse)
    assert o.shape == to.shape == (B, H, num_queries, D)
    assert not o.any()
    assert not to.any()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("backend", ["flash", "efficient"])
@pytest.mark.parametrize("features", [40, 43])
def test_padding_for_cuda_is_cut_off_again(monkeypatch, backend, features):
    """Shapes alone, on meta tensors: the efficient operator pads lse to a multiple of 32."""
    monkeypatch.setitem(attention_with_lse.__globals__, "choose_backend", lambda *_: backend)
    q, k = (torch.empty(B, H, n, features, dtype=torch.half, device="meta") for n in (37, 29))
    mask = torch.empty(H, 37, 29, device="meta") if backend == "efficient" else None
    o, lse = attention_with_lse(q, k, k, attn_mask=mask)
    assert o.shape == q.shape
    assert lse.shape == (B, H, 37)
    assert (o.dtype, lse.dtype) == (torch.half, torch.float32)


def test_bias_is_laid_out_as_the_efficient_operator_asks(randn):
    """Rows of a multiple of 16 elements, axes of size one not stored, values unchanged."""
    for shape in ((1, 1, 37, 29), (B, 1, 37, 29), (1, H, 37, 29), (B, H, 37, 32)):
        mask = randn(*shape).expand(B, H, 37, shape[-1])
        bias = align_bias(mask)
        assert torch.equal(bias, mask)
        assert bias.stride(2) == 32
        assert bias.stride(3) == 1
        assert [s == 0 for s in bias.stride()[:2]] == [size == 1 for size in shape[:2]]


@pytest.mark.parametrize(
    ("dtype", "dv", "masked", "is_causal", "major", "expected"),
    [
        (torch.half, D, False, False, 9, "flash"),
        (torch.half, D, False, False, 7, "efficient"),
        (torch.half, D, False, True, 9, "efficient"),  # flash aligns M != N at the bottom right
        (torch.half, D, True, False, 9, "efficient"),
        (torch.half, 4, False, False, 9, "efficient"),
        (torch.float32, D, False, False, 9, "efficient"),
        (torch.float64, D, False, False, 9, "dense"),
    ],
)
def test_choice_on_cuda(monkeypatch, dtype, dv, masked, is_causal, major, expected):
    """With stand-ins for the device, which this machine need not have."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major)
    )

    def tensor(*shape):
        device = SimpleNamespace(type="cuda")
        return SimpleNamespace(
            shape=shape, dtype=dtype, device=device, numel=lambda: 1, requires_grad=False
        )

    q, k, v = tensor(B, H, M, D), tensor(B, H, N, D), tensor(B, H, N, dv)
    mask = tensor(B, H, M, N) if masked else None
    assert choose_backend(q, k, v, mask, is_causal) == expected


def test_autocast_casts_as_torch_does(randn):
    """q in float32 beside v in bfloat16 is an error outside autocast and a cast inside."""
    q, k, v = (x.detach().float() for x in inputs(randn))
    with torch.autocast("cpu", torch.bfloat16):
        o, lse = attention_with_lse(q, k, v.bfloat16())
        to = attention_tangent(q, k, v.bfloat16(), q, None, v, o, lse)
        expected = F.scaled_dot_product_attention(q, k, v)
    assert o.dtype == to.dtype == torch.bfloat16
    torch.testing.assert_close(o, expected)
    with pytest.raises(ValueError, match="must share one floating data type"):
        attention_with_lse(q, k, v.bfloat16())


def test_misfits_are_refused(randn):
    q, k, v = inputs(randn)
    with pytest.raises(ValueError, match=r"must be \(B, H, tokens, features\)"):
        attention_with_lse(q[0], k[0], v[0])
    with pytest.raises(ValueError, match="must share B, H, N and D"):
        attention_with_lse(q, k[:, :1], v[:, :1])
    with pytest.raises(ValueError, match="must share B, H, N and D"):
        fused_attention_with_tangent(q, k, v[:, :, 1:], None, None, None)
    with pytest.raises(ValueError, match="exclude each other"):
        attention_with_lse(q, k, v, attn_mask=torch.ones(M, N).bool(), is_causal=True)
    with pytest.raises(ValueError, match="must broadcast"):
        attention_with_lse(q, k, v, attn_mask=torch.ones(1, B, H, M, N))
