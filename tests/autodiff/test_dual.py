# SPDX-License-Identifier: Apache-2.0
"""Every rule of the dual numbers against torch's forward mode, in float64; and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm_lightning.autodiff import attention
from scm_lightning.autodiff.dual import DualNumbers, Traced, fallback_calls

W = torch.linspace(-1, 1, 42, dtype=torch.float64).reshape(7, 6)
B7 = torch.linspace(0.2, 0.9, 7, dtype=torch.float64)
B6 = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
K = torch.linspace(-1, 1, 4 * 6 * 3, dtype=torch.float64)
MASK = torch.arange(6) % 2 == 0


def kernel(dims, transposed=False):
    """A convolution kernel of width 3 along its first axis, 1 along the others."""
    shape = (6, 4) if transposed else (4, 6)
    return K.reshape(*shape, 3, *[1] * (dims - 1))


def with_math(*args, **options):
    """Torch's attention, in the only way that has a forward derivative of its own."""
    with sdpa_kernel(SDPBackend.MATH):
        return nnf.scaled_dot_product_attention(*args, **options)


VECTOR, IMAGE = (5, 6), (5, 6, 4, 2)
"""Shapes of the argument: batch 5, six channels or elements, 4 x 2 pixels."""
ONE = {  # name of the rule: functions of one dual number of the given shape
    "__getitem__": (IMAGE, lambda x: x[1:, :, None, 2]),
    "adaptive_avg_pool1d": ((5, 6, 4), lambda x: nnf.adaptive_avg_pool1d(x, 2)),
    "adaptive_avg_pool2d": (IMAGE, lambda x: nnf.adaptive_avg_pool2d(x, (2, 1))),
    "avg_pool1d": ((5, 6, 4), lambda x: nnf.avg_pool1d(x, 2)),
    "avg_pool2d": (IMAGE, lambda x: nnf.avg_pool2d(x, 2)),
    "avg_pool3d": ((5, 6, 4, 2, 2), lambda x: nnf.avg_pool3d(x, 2)),
    "broadcast_to": ((1, 6), lambda x: torch.broadcast_to(x, (3, 6))),
    "channel_shuffle": (IMAGE, lambda x: nnf.channel_shuffle(x, 3)),
    "chunk": (VECTOR, lambda x: x.chunk(2, dim=1)[1]),
    "clone": (VECTOR, lambda x: x.clone()),
    "contiguous": (VECTOR, lambda x: x.transpose(0, 1).contiguous()),
    "cpu": (VECTOR, lambda x: x.cpu()),
    "cumsum": (VECTOR, lambda x: torch.cumsum(x, 1)),
    "diagonal": (VECTOR, lambda x: torch.diagonal(x)),
    "double": (VECTOR, lambda x: x.double()),
    "expand": ((1, 6), lambda x: x.expand(3, 6)),
    "expand_as": ((1, 6), lambda x: x.expand_as(W)),
    "flatten": (IMAGE, lambda x: x.flatten(1)),
    "flip": (VECTOR, lambda x: x.flip(1)),
    "index_select": (VECTOR, lambda x: torch.index_select(x, 1, torch.tensor([2, 0]))),
    "interpolate": (IMAGE, lambda x: nnf.interpolate(x, scale_factor=2, mode="bilinear")),
    "mean": (VECTOR, lambda x: x.mean(dim=1, keepdim=True)),
    "movedim": (IMAGE, lambda x: x.movedim(1, 3)),
    "narrow": (VECTOR, lambda x: x.narrow(1, 2, 3)),
    "neg": (VECTOR, lambda x: -x),
    "pad": (VECTOR, lambda x: nnf.pad(x, (1, 2))),
    "permute": (IMAGE, lambda x: x.permute(0, 2, 3, 1)),
    "pixel_shuffle": ((5, 8, 3, 2), lambda x: nnf.pixel_shuffle(x, 2)),
    "pixel_unshuffle": (IMAGE, lambda x: nnf.pixel_unshuffle(x, 2)),
    "repeat": (VECTOR, lambda x: x.repeat(1, 2)),
    "repeat_interleave": (VECTOR, lambda x: x.repeat_interleave(2, dim=1)),
    "reshape": (IMAGE, lambda x: x.reshape(5, -1)),
    "roll": (VECTOR, lambda x: torch.roll(x, 1, 1)),
    "select": (VECTOR, lambda x: x.select(1, 2)),
    "split": (VECTOR, lambda x: x.split([2, 4], dim=1)[1]),
    "squeeze": ((5, 1, 6), lambda x: x.squeeze(1)),
    "sum": (VECTOR, lambda x: x.sum(1)),
    "swapaxes": (VECTOR, lambda x: x.swapaxes(0, 1)),
    "t": (VECTOR, lambda x: x.t()),
    "tensor_split": (VECTOR, lambda x: torch.tensor_split(x, 3, dim=1)[1]),
    "tile": (VECTOR, lambda x: torch.tile(x, (2,))),
    "to": (VECTOR, lambda x: x.to(torch.float64)),
    "transpose": (IMAGE, lambda x: x.mT),
    "tril": (VECTOR, lambda x: torch.tril(x)),
    "triu": (VECTOR, lambda x: torch.triu(x)),
    "type_as": (VECTOR, lambda x: x.type_as(W)),
    "unbind": (VECTOR, lambda x: x.unbind(1)[3]),
    "unflatten": (VECTOR, lambda x: x.unflatten(1, (2, 3))),
    "unfold": (IMAGE, lambda x: nnf.unfold(x, 2)),
    "unsqueeze": (VECTOR, lambda x: x.unsqueeze(1)),
    "view": (IMAGE, lambda x: x.view(5, 48)),
    "view_as": (VECTOR, lambda x: x.view_as(torch.zeros(3, 10))),
    "cat": (VECTOR, lambda x: torch.cat([x, W, x * 2])),
    "stack": (VECTOR, lambda x: torch.stack([x, W[:5], 2 * x], dim=1)),
    "hstack": (VECTOR, lambda x: torch.hstack([x, W[:5]])),
    "concat": (VECTOR, lambda x: torch.concat([x, W])),
    "concatenate": (VECTOR, lambda x: torch.concatenate([x, W])),
    "add": (VECTOR, lambda x: (1.5 + x) + torch.add(x[:1], x, alpha=2) + (W[:5] + x)),
    "sub": (VECTOR, lambda x: (1.5 - x) - torch.sub(x[:1], x, alpha=2) - (W[:5] - x)),
    "subtract": (VECTOR, lambda x: torch.subtract(x, W[:5])),
    "mul": (VECTOR, lambda x: (2 * x) * x[:1] * W[:5] * (W[:5] * x)),
    "multiply": (VECTOR, lambda x: torch.multiply(W[:5], x)),
    "matmul": (VECTOR, lambda x: (x @ W.T) @ (W @ x.T) + torch.matmul(x, x.mT)),
    "bmm": ((5, 6, 6), lambda x: torch.bmm(x, x)),
    "mm": (VECTOR, lambda x: torch.mm(W, x.t())),
    "mv": (VECTOR, lambda x: torch.mv(x, x[0])),
    "einsum": (VECTOR, lambda x: torch.einsum("bi,oi,bj->boj", x, W, x)),
    "linear": (VECTOR, lambda x: nnf.linear(x, W, B7) + nnf.linear(x, W * x[:1], x[0, :1] * B7)),
    "conv1d": ((5, 6, 4), lambda x: nnf.conv1d(x, kernel(1), B7[:4], padding=1)),
    "conv2d": (
        IMAGE,
        lambda x: (
            nnf.conv2d(x, kernel(2), B7[:4], stride=2)
            + nnf.conv2d(x, kernel(2) * x[0, 0, 0, 0], B7[:4] * x[0, 0, 0, 0], stride=2)
        ),
    ),
    "conv3d": ((5, 6, 4, 2, 2), lambda x: nnf.conv3d(x, kernel(3), B7[:4])),
    "conv_transpose1d": ((5, 6, 4), lambda x: nnf.conv_transpose1d(x, kernel(1, True), B7[:4])),
    "conv_transpose2d": (IMAGE, lambda x: nnf.conv_transpose2d(x, kernel(2, True), B7[:4])),
    "conv_transpose3d": (
        (5, 6, 4, 2, 2),
        lambda x: nnf.conv_transpose3d(x, kernel(3, True), B7[:4]),
    ),
    "detach": (VECTOR, lambda x: x * x.detach()),
    "where": (VECTOR, lambda x: torch.where(MASK, x, 2.0) + torch.where(MASK, x * x, x)),
    "masked_fill": (VECTOR, lambda x: x.masked_fill(MASK, -3.0)),
    "clamp": (VECTOR, lambda x: x.clamp(-0.5, 0.8) + x.clamp(min=0.1)),
    "clip": (VECTOR, lambda x: x.clip(-0.5, 0.8)),
    "div": (VECTOR, lambda x: (x / 3) / (x * x + 2) + (1.5 / (x * x + 1)) / W[:5].exp()),
    "true_divide": (VECTOR, lambda x: torch.true_divide(x, 3)),
    "pow": (VECTOR, lambda x: x**3 + (x * x + 1) ** -0.5),
    "remainder": (VECTOR, lambda x: x % 0.3 + torch.fmod(W[:5], x * x + 1) + x % (x * x)),
    "gelu": (VECTOR, lambda x: nnf.gelu(x) + nnf.gelu(x, approximate="tanh")),
    "relu": (VECTOR, lambda x: nnf.relu(x) + torch.relu(x) + x.relu()),
    "silu": (VECTOR, lambda x: nnf.silu(x)),
    "softplus": (VECTOR, lambda x: nnf.softplus(x, 2.0, 1.5)),
    "layer_norm": (
        VECTOR,
        lambda x: nnf.layer_norm(x, (6,)) + nnf.layer_norm(x, (6,), B6, B6, 0.1),
    ),
    "group_norm": (IMAGE, lambda x: nnf.group_norm(x, 3) + nnf.group_norm(x, 2, B6, B6, eps=0.1)),
    "rms_norm": (IMAGE, lambda x: nnf.rms_norm(x, (4, 2)) + nnf.rms_norm(x, (2,), B6[:2], 0.1)),
    "softmax": (VECTOR, lambda x: nnf.softmax(x, dim=1) + torch.softmax(x, 0) + x.softmax(-1)),
    "abs": (VECTOR, lambda x: x.abs()),
    "cos": (VECTOR, lambda x: x.cos()),
    "erf": (VECTOR, lambda x: torch.erf(x)),
    "exp": (VECTOR, lambda x: x.exp()),
    "expm1": (VECTOR, lambda x: torch.expm1(x)),
    "log": (VECTOR, lambda x: (x * x + 1).log()),
    "log1p": (VECTOR, lambda x: torch.log1p(x * x)),
    "reciprocal": (VECTOR, lambda x: torch.reciprocal(x)),
    "rsqrt": (VECTOR, lambda x: torch.rsqrt(x * x + 1)),
    "sigmoid": (VECTOR, lambda x: x.sigmoid()),
    "sin": (VECTOR, lambda x: x.sin()),
    "sqrt": (VECTOR, lambda x: (x * x + 1).sqrt()),
    "square": (VECTOR, lambda x: x.square()),
    "tanh": (VECTOR, lambda x: x.tanh()),
    "dropout": (VECTOR, lambda x: nnf.dropout(x, 0.4) + torch.dropout(x, 0.4, True)),
    "dropout1d": ((5, 6, 4), lambda x: nnf.dropout1d(x, 0.4)),
    "dropout2d": (IMAGE, lambda x: nnf.dropout2d(x, 0.4)),
    "dropout3d": ((5, 6, 4, 2, 2), lambda x: nnf.dropout3d(x, 0.4)),
}
HEADS = (5, 2, 4, 6)
CAUSAL = {"is_causal": True, "scale": 0.3}
ONE |= {
    "attention": (HEADS, lambda x: attention(x, 2 * x, x * x, **CAUSAL) + attention(x, x, x)),
    "scaled_dot_product_attention": (
        HEADS,
        lambda x: (
            with_math(x, x[:, :1], x[:, :1] * x[:, :1], enable_gqa=True)
            + with_math(x, x, x, attn_mask=torch.eye(4).bool(), scale=0.3)
        ),
    ),
}


def by_dual(f, x, tx):
    """Value and tangent by the tensor that is one."""
    with DualNumbers() as level:
        return level.part(f(level.join(x.view_as(x), tx)))


def by_pair(f, x, tx):
    """Value and tangent by the pair of the compiled graph."""
    pair = f(Traced(x, tx))
    assert type(pair) is Traced
    return pair.primal, pair.tangent


def check(f, x, tx, carry=by_dual):
    """Value, derivative and reverse gradient of a function, against plain torch."""
    torch.manual_seed(1)
    expected, t_expected = torch.func.jvp(f, (x,), (tx,))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(1)
    out, tangent = carry(f, ours, tx)
    assert type(out) is torch.Tensor
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(tangent, t_expected, rtol=1e-9, atol=1e-9)
    assert not tangent.requires_grad
    torch.manual_seed(1)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=x.dtype).reshape(expected.shape)
    (f(theirs) * weights).sum().backward()
    (out * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("carry", [by_dual, by_pair])
@pytest.mark.parametrize("name", ONE)
def test_rule_agrees_with_forward_mode(randn, name, carry):
    """In both carriers, and by a rule: no operation takes the way through forward mode."""
    shape, f = ONE[name]
    fallback_calls.clear()
    check(f, randn(*shape), randn(*shape), carry)
    assert not fallback_calls


@pytest.mark.parametrize("name", ["float", "half", "bfloat16"])
def test_casts_cast_both_parts(randn, name):
    value, tangent = by_dual(lambda x: getattr(x, name)(), randn(5, 6), randn(5, 6))
    assert value.dtype == tangent.dtype == getattr(torch, name.replace("half", "float16"))


def test_an_operation_without_a_rule_goes_through_forward_mode_and_is_counted(randn):
    """Value, derivative, gradient; the primal is computed once, with its graph."""
    fallback_calls.clear()
    check(lambda x: torch.atan(x) * torch.logsumexp(x, 1, keepdim=True), randn(5, 6), randn(5, 6))
    check(lambda x: 10.0**-x, randn(5, 6), randn(5, 6))
    assert fallback_calls == {"atan": 1, "logsumexp": 1, "__rpow__": 1}


def test_an_operation_that_loses_the_tangent_is_refused(randn):
    """A custom op has no forward derivative: torch's own forward mode says nothing, or zero."""

    @torch.library.custom_op("scm_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    with pytest.raises(ValueError, match=r"lost the tangent|has no forward derivative"):
        by_dual(twice, randn(5, 6), randn(5, 6))


def test_a_dual_number_is_a_tensor(randn):
    """What asks finds one; comparisons and shapes are those of the value."""
    value = randn(5, 6)
    with DualNumbers() as level:
        x = level.join(value.clone(), randn(5, 6))
        assert isinstance(x, torch.Tensor)
        assert torch.is_tensor(x)
        assert x.shape == (5, 6)
        assert x.size(1) == x.shape[-1] == 6
        assert len(x) == 5
        assert torch.equal(x > 0, value > 0)
    assert type(x + 1) is torch.Tensor  # after the pass it is one like any other


def test_a_pair_answers_as_its_value(randn):
    x = Traced(randn(5, 6), randn(5, 6))
    assert x.shape == (5, 6)
    assert len(x) == 5
    assert torch.equal(x > 0, x.primal > 0)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = x.nonsense
    with pytest.raises(ValueError, match="cannot follow add_; write it out of place"):
        x.add_(1.0)


def test_modules_take_dual_numbers(randn):
    """Layers as networks hold them, with their weights' gradients."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(6, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(128, 6),
        nn.LayerNorm(6),
        nn.Softmax(1),
    ).double()
    x, tx = randn(*IMAGE), randn(*IMAGE)
    check(layers, x, tx)
    found = [parameter.grad.clone() for parameter in layers.parameters()]
    assert all(float(gradient.abs().max()) > 0 for gradient in found)
