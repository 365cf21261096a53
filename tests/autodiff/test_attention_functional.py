# SPDX-License-Identifier: Apache-2.0
"""What networks call: torch's attention, a forward mode for it, hooks for dual numbers, compile."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch.library import opcheck
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm_lightning.autodiff.jvp_attention import (
    attention,
    attention_tangent,
    attention_with_lse,
    fused_attention_with_tangent,
)
from scm_lightning.autodiff.jvp_attention.fused import attention_dual_op
from scm_lightning.autodiff.jvp_attention.tangent import attention_tangent_op

B, H, M, N, D = 2, 3, 7, 5, 8


def six(randn, dv=D):
    shapes = ((B, H, M, D), (B, H, N, D), (B, H, N, dv))
    return [randn(*shape) for shape in shapes * 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_plain_tensors_get_torchs_own_attention(randn, dtype):
    q, k, v = (x.to(dtype) for x in six(randn)[:3])
    mask = randn(M, N) > 0
    for options in ({"attn_mask": mask}, {"is_causal": True}, {"scale": 0.3}, {}):
        expected = F.scaled_dot_product_attention(q, k, v, **options)
        assert torch.equal(attention(q, k, v, **options), expected)


@pytest.mark.parametrize("duals", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("dv", [D, 4])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}])
def test_repaired_jvp_against_torchs_math(randn, duals, dv, options):
    """Value, derivative and the parameter's gradient of the primal, in grad mode, float64."""
    all_six = six(randn, dv)
    weight = randn(D, D).requires_grad_()

    def run(attend):
        def f(*some):
            x = dict(zip(duals, some, strict=True))
            q, k, v = (x.get(i, all_six[i]) for i in range(3))
            return attend(q @ weight, k, v, **options)

        tangents = tuple(all_six[i + 3] for i in duals)
        o, to = torch.func.jvp(f, tuple(all_six[i] for i in duals), tangents)
        return o, to, *torch.autograd.grad(o.square().sum(), weight)

    with sdpa_kernel(SDPBackend.MATH):
        expected = run(F.scaled_dot_product_attention)
    actual = run(attention)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert float(expected[1].detach().abs().max()) > 0.1
    assert not actual[1].requires_grad


def test_dual_level_and_a_mask(randn):
    q, k, v, tq, *_ = six(randn)
    mask = randn(M, N) > -0.3
    mask[2] = False
    with forward_ad.dual_level():
        o = attention(forward_ad.make_dual(q, tq), k, v, attn_mask=mask)
        actual = forward_ad.unpack_dual(o).tangent
    o, lse = attention_with_lse(q, k, v, attn_mask=mask)
    expected = attention_tangent(q, k, v, tq, None, None, o, lse, attn_mask=mask)
    torch.testing.assert_close(actual, expected)
    assert not expected[:, :, 2].any()
    assert expected.any()


def test_what_forward_mode_cannot_do_is_refused(randn):
    q, k, v, tq, *_ = six(randn)

    def derivative(q):
        return torch.func.jvp(lambda q: attention(q, k, v), (q,), (tq,))[1]

    with pytest.raises(ValueError, match=r"got nested torch\.func\.jvp"):
        torch.func.jvp(derivative, (q,), (tq,))
    bias = randn(M, N)
    with pytest.raises(ValueError, match="attn_mask must be constant in forward mode"):
        torch.func.jvp(lambda b: attention(q, k, v, attn_mask=b), (bias,), (bias,))
    with pytest.raises(Exception, match=r"attention in torch\.func\.jvp cannot be compiled"):
        torch.compile(derivative, backend="eager", fullgraph=True)(q)


def test_classes_with_torch_function_receive_the_call(randn):
    """How dual numbers get it: function, positions and keywords as written."""
    q, _, v = six(randn)[:3]

    class Dual:
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return function, args, kwargs

    dual = Dual()
    function, args, kwargs = attention(q, dual, v, scale=0.3)
    assert function is attention
    assert args == (q, dual, v)
    assert kwargs == {"attn_mask": None, "is_causal": False, "scale": 0.3}


@pytest.mark.parametrize("name", ["boolean", "none", "causal"])
def test_operators_keep_torchs_contract(randn, name):
    q, k, v, tq, _, tv = six(randn)
    mask = randn(M, N) > 0 if name == "boolean" else None
    causal = name == "causal"
    o, lse = attention_with_lse(q, k, v, attn_mask=mask, is_causal=causal)
    opcheck(attention_tangent_op, (q, k, v, tq, None, tv, o, lse, mask, causal, 0.3))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    opcheck(attention_dual_op, (*leaves, tq, None, tv, mask, causal, 0.3))


@pytest.mark.parametrize(("one_pass", "backend"), [(False, "inductor"), (True, "aot_eager")])
def test_compiled_in_one_graph_it_stays_the_same(randn, one_pass, backend):
    """Value, derivative and gradients; the derivative is not zero."""
    all_six = [x.float() for x in six(randn)]

    def f(q, k, v, tq, tk, tv):
        if one_pass:
            o, to, _ = fused_attention_with_tangent(2 * q, k, v, 2 * tq, tk, tv)
        else:
            o, lse = attention_with_lse(2 * q, k, v)
            to = attention_tangent(2 * q, k, v, 2 * tq, tk, tv, o, lse)
        return o + 1, to + 1

    def run(f):
        leaves = [x.clone().requires_grad_() for x in all_six[:3]]
        o, to = f(*leaves, *all_six[3:])
        return o, to, *torch.autograd.grad(o.square().sum(), leaves)

    expected = run(f)
    actual = run(torch.compile(f, fullgraph=True, backend=backend))
    torch.testing.assert_close(actual, expected)
    assert float((actual[1] - 1).abs().max()) > 0.1
    assert not actual[1].requires_grad
