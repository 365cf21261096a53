# SPDX-License-Identifier: Apache-2.0
"""DDPM++: its size, its structure, one forward written out, and its derivative by every method."""

import itertools
import math

import pytest
import torch
from tiny import wake
from torch import nn

from scm_lightning.autodiff import TangentComputer
from scm_lightning.autodiff.dual import fallback_calls
from scm_lightning.core import Bound
from scm_lightning.networks import TimeEmbedding, UNet, pixel_norm
from scm_lightning.networks.norms import AdditiveNorm
from scm_lightning.networks.unet_blocks import PixelAttention, ResidualBlock

SIGMA_DATA = 0.7
SHAPE = (3, 8, 12)


def small(**options):
    """Two levels with attention on the second, and everything that a network can be told."""
    return UNet(
        SHAPE,
        **{
            "model_channels": 8,
            "channel_mult": (1, 2),
            "num_blocks": 1,
            "attention_pixels": (6,),
            "dropout": 0.0,
            **options,
        },
    )


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def blocks_of(network):
    return [module for module in network.modules() if isinstance(module, ResidualBlock)]


@pytest.fixture(scope="module")
def paper():
    """The CIFAR-10 network, without memory for its weights."""
    with torch.device("meta"):
        return UNet((3, 32, 32), augment_channels=9)


def test_number_of_parameters(paper):
    """DDPM++ with nine augmentation labels has 55,733,891; double norm changes 33 blocks.

    There the embedding's linear layer gives C channels and the norm has weights and biases of its
    own, 2 C; here it gives 2 C channels and the norm has none. C is 256 throughout.
    """
    linear, norm = 512 * 256 + 256, 2 * 256
    assert size(paper) == 55_733_891 + 33 * (linear - norm) == 60_050_819
    assert size(paper) - size(paper.conditioning.augment) == 60_049_667
    with torch.device("meta"):
        assert size(UNet((3, 32, 32), augment_channels=9, norm="additive")) == 55_733_891


def test_blocks_of_the_paper(paper):
    """4 down and 5 up on each of three levels, two that halve and two that double, two between."""
    blocks = blocks_of(paper)
    assert [len(paper.down), len(paper.middle), len(paper.up)] == [14, 2, 17]
    resampling = [block.resampling for block in blocks]
    assert [resampling.count(way) for way in ("down", "none", "up")] == [2, 29, 2]
    assert {block.dropout.p for block in blocks} == {0.13}
    groups = {module.num_groups for block in blocks for module in (block.norm1, block.norm2)}
    assert groups == {32}
    assert {module.eps for module in paper.modules() if isinstance(module, nn.GroupNorm)} == {1e-6}
    in_channels = [block.conv1.in_channels for block in paper.up if block.resampling == "none"]
    assert in_channels == [512] * 14 + [384]  # the last takes the first convolution's 128


def test_attention_sees_the_right_resolutions(monkeypatch):
    """At 16x16 in every block down and the last one up; at 8x8 once, in the middle."""
    network = UNet((1, 32, 32), model_channels=4, channel_mult=(1, 1, 1), num_blocks=4).eval()
    seen = []
    forward = PixelAttention.forward

    def spy(self, x):
        seen.append(tuple(x.shape[2:]))
        return forward(self, x)

    monkeypatch.setattr(PixelAttention, "forward", spy)
    network(torch.zeros(2, 1, 32, 32), torch.ones(2))
    assert seen == [(16, 16)] * 4 + [(8, 8)] + [(16, 16)]
    seen.clear()
    with pytest.raises(ValueError, match="longer sides of the levels, 12, 6, got 7; take it out"):
        small(attention_pixels=(6, 7))
    small(attention_pixels=())(torch.zeros(2, *SHAPE), torch.ones(2))
    assert seen == [(4, 6)]
    seen.clear()
    small(attention_pixels=(12,))(torch.zeros(2, *SHAPE), torch.ones(2))
    assert seen == [(8, 12), (4, 6), (8, 12)]


def group_norm(x, norm):
    """Group norm by its definition."""
    y = x.reshape(len(x), norm.num_groups, -1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    return y.reshape(x.shape)


def written_out(block, x, emb):
    """A residual block, from the formulas of the module's docstring."""

    def image(a):
        return a[:, :, None, None]

    def silu(a):
        return a / (1 + (-a).exp())

    def resample(a):
        if block.resampling == "down":
            return sum(a[..., i::2, j::2] for i, j in itertools.product((0, 1), (0, 1))) / 4
        if block.resampling == "up":
            return a.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return a

    norm = block.norm1
    h = group_norm(x, norm) * image(norm.weight[None]) + image(norm.bias[None])
    h = block.conv1(resample(silu(h)))
    norm = block.norm2
    if isinstance(norm, AdditiveNorm):
        h = group_norm(h + image(emb @ norm.added.weight.T + norm.added.bias), norm)
        h = h * image(norm.weight[None]) + image(norm.bias[None])
    else:
        s = pixel_norm(emb @ norm.scale.weight.T + norm.scale.bias)
        b = pixel_norm(emb @ norm.shift.weight.T + norm.shift.bias)
        h = group_norm(h, norm)
        if norm.weight is not None:
            h = h * image(norm.weight[None]) + image(norm.bias[None])
        h = h * image(s) + image(b)
    h = block.conv2(silu(h))
    y = (block.skip(resample(x)) + h) / math.sqrt(2)
    if block.attention is None:
        return y
    attention = block.attention
    norm = group_norm(y, attention.norm) * image(attention.norm.weight[None])
    tokens = (norm + image(attention.norm.bias[None])).flatten(2)  # (B, C, L)
    wq, wk, wv = attention.qkv.weight.chunk(3)
    bq, bk, bv = attention.qkv.bias.chunk(3)
    q, k, v = (w @ tokens + b[:, None] for w, b in ((wq, bq), (wk, bk), (wv, bv)))
    weights = (q.mT @ k / math.sqrt(len(wq))).softmax(-1)
    out = attention.out.weight @ (v @ weights.mT) + attention.out.bias[:, None]
    return (y + out.reshape(y.shape)) / math.sqrt(2)


@pytest.mark.parametrize("resampling", ["none", "down", "up"])
@pytest.mark.parametrize("with_attention", [False, True])
@pytest.mark.parametrize("out_channels", [8, 12])
@pytest.mark.parametrize("norm", ["double", "affine_double", "additive"])
def test_a_block_written_out(randn, resampling, with_attention, out_channels, norm):
    block = ResidualBlock(8, out_channels, 5, 0.4, resampling, with_attention, norm=norm)
    block = wake(block).double().eval()
    x, emb = randn(3, 8, 4, 6), randn(3, 5)
    torch.testing.assert_close(block(x, emb), written_out(block, x, emb))
    plain = isinstance(block.skip, nn.Identity)
    assert plain == (resampling == "none" and out_channels == 8)


def test_a_network_written_out(randn):
    """Every kept result is used once, the last first; the features of t have 8 channels."""
    network = wake(small(augment_channels=4)).double().eval()
    u, t, augment = randn(3, *SHAPE), torch.tensor([0.1, 0.8, 1.5]).double(), randn(3, 4)
    know = network.conditioning
    angles = t[:, None] * torch.tensor([1.0, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4]).double()
    features = torch.cat([angles.cos(), angles.sin()], dim=1) + augment @ know.augment.weight.T
    emb = nn.functional.silu(know.out(nn.functional.silu(know.time(features))))
    assert emb.shape == (3, 32)
    kept = [network.input(u)]
    for block in network.down:
        kept.append(written_out(block, kept[-1], emb))
    h = kept[-1]
    for block in network.middle:
        h = written_out(block, h, emb)
    first, second, up, third, fourth = network.up
    for block in (first, second):
        h = written_out(block, torch.cat([h, kept.pop()], dim=1), emb)
    h = written_out(up, h, emb)
    for block in (third, fourth):
        h = written_out(block, torch.cat([h, kept.pop()], dim=1), emb)
    h = network.output_norm(h)
    expected = network.output(h * h.sigmoid())
    assert not kept
    torch.testing.assert_close(network(u, t, augment=augment), expected, rtol=1e-6, atol=1e-6)


def test_branches_say_nothing_at_the_start_and_conditions_do(randn):
    """Zero: the last layers; not zero: what goes into a pixel norm."""
    network = small()
    for block in blocks_of(network):
        assert not block.conv2.weight.any()
        assert block.attention is None or not block.attention.out.weight.any()
        assert block.norm2.scale.weight.all()
        assert block.norm2.shift.weight.any(dim=1).all()
        assert not block.conv1.bias.any()
        channels = block.conv1.in_channels + block.conv1.out_channels
        bound = math.sqrt(6 / (9 * channels))
        assert 0.9 * bound < float(block.conv1.weight.detach().abs().max()) <= bound
    assert not network(randn(3, *SHAPE).float(), torch.ones(3)).any()


def test_an_affine_norm_starts_as_the_plain_one(randn):
    """Weights of one and biases of zero: the same states but for these, and the same F."""
    plain, affine = small(), small(norm="affine_double")
    missing, extra = affine.load_state_dict(wake(plain).state_dict(), strict=False)
    assert not extra
    assert {name.rsplit("norm2.")[1] for name in missing} == {"weight", "bias"}
    u, t = randn(3, *SHAPE).float(), torch.tensor([0.1, 0.8, 1.5])
    torch.testing.assert_close(affine.eval()(u, t), plain.eval()(u, t))


def test_no_augmentation_is_labels_of_zeros(randn):
    """With a gradient, of zero, since DDP waits for that of every weight."""
    network = wake(small(augment_channels=9)).double().eval()
    u, t = randn(3, *SHAPE), torch.ones(3).double()
    plain = network(u, t)
    assert torch.equal(network(u, t, augment=torch.zeros(3, 9).double()), plain)
    assert float((network(u, t, augment=randn(3, 9)) - plain).detach().abs().max()) > 1e-3
    plain.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not network.conditioning.augment.weight.grad.any()


class Augmented(nn.Module):
    """A network with fixed augmentation labels, as callers of a derivative see it."""

    def __init__(self, network, augment):
        super().__init__()
        self.network, self.augment = network, augment

    def forward(self, u, t, labels, guidance, t_end):
        return self.network(u, t, labels, guidance, t_end, self.augment)


def derivative(method, network, randn_seed=0):
    """F, derivative and gradients, with labels, guidance, a second time and augmentation."""
    generator = torch.Generator().manual_seed(randn_seed)
    x_t, dx_dt = SIGMA_DATA * torch.randn(2, 5, *SHAPE, generator=generator).double()
    t = torch.tensor([0.01, 0.3, 0.9, 1.3, 1.56], dtype=torch.float64)
    torch.manual_seed(7)
    network.zero_grad()
    F, J = TangentComputer(method)(
        Bound(network, torch.tensor([0, 1, -1, 1, 2]), guidance=t + 1.0),
        x_t,
        t,
        dx_dt,
        sigma_data=SIGMA_DATA,
        t_end=t / 2,
    )
    (F * torch.linspace(-1, 1, F.numel(), dtype=F.dtype).reshape(F.shape)).sum().backward()
    return F.detach(), J, [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize(
    ("attention_pixels", "dropout", "norm"),
    [
        ((6,), 0.4, "double"),
        ((12, 6), 0.0, "double"),
        ((6,), 0.4, "affine_double"),
        ((6,), 0.4, "additive"),
    ],
)
def test_all_methods_agree_and_dual_numbers_have_every_rule(attention_pixels, dropout, norm, randn):
    network = small(
        attention_pixels=attention_pixels,
        dropout=dropout,
        norm=norm,
        num_classes=3,
        guided=True,
        two_times=True,
        augment_channels=9,
    )
    network = Augmented(wake(network).double(), randn(5, 9)).train()
    fallback_calls.clear()
    F, J, gradients = derivative("dual", network)
    assert not fallback_calls
    assert float(J.abs().max()) > 1e-3
    for method in ("dual_checkpoint", "func", "two_pass"):
        others = derivative(method, network)
        torch.testing.assert_close(others, (F, J, gradients), rtol=1e-9, atol=1e-9)
    others = derivative("finite_difference", network)
    torch.testing.assert_close(others[1], J, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(others[::2], (F, gradients), rtol=1e-9, atol=1e-9)


def test_a_network_with_all_options_of_the_time_embedding(randn):
    """The times are seen as they were told to be."""
    u, t = randn(3, *SHAPE), torch.tensor([0.1, 0.8, 1.5]).double()
    outputs = [
        wake(small(time_embedding=TimeEmbedding(*options))).double().eval()(u, t)
        for options in itertools.product(("identity", "log"), ("positional", "fourier"))
    ]
    for one, other in itertools.combinations(outputs, 2):
        assert float((one - other).detach().abs().max()) > 1e-3


def test_misfits_are_refused(randn):
    with pytest.raises(ValueError, match=r"3 levels takes images .* divisible by 4, got"):
        UNet((3, 32, 30))
    with pytest.raises(ValueError, match=r"the paper.s., affine_double or additive, got no"):
        small(norm="no")
    with pytest.raises(ValueError, match="divisible by 1, got"):
        UNet((32,), channel_mult=(1,))
    with pytest.raises(ValueError, match=r"without augmentation labels .* augment_channels to 9"):
        small()(randn(3, *SHAPE).float(), torch.ones(3), augment=torch.zeros(3, 9))
