# SPDX-License-Identifier: Apache-2.0
"""Transformer, EDM2's blocks and the perceptron written out: softmax, shares, places, order."""

import math

import pytest
import torch
from tiny import wake
from torch import nn

from scm_lightning.core import TrigFlow
from scm_lightning.networks import MLP, DiT, EDM2UNet, PositionalEmbedding
from scm_lightning.networks.edm2_blocks import EDM2Block, MPConditioning
from scm_lightning.networks.magnitude import MPLinear
from scm_lightning.networks.time_embedding import (
    FourierEmbedding,
    TimeEmbedding,
    check_time_embeddings,
)

T = torch.linspace(0.1, 1.5, 5, dtype=torch.float64)
TIGHT = {"rtol": 1e-9, "atol": 1e-10}


def frozen(network):
    return wake(network).double().eval().requires_grad_(False)


def softmax_attention(q, k, v):
    """(B, L, heads, D) each, to (B, L, heads * D)."""
    weights = torch.einsum("blhd,bmhd->bhlm", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhlm,bmhd->blhd", weights.softmax(-1), v).flatten(2)


def unit(x):
    """Along the last axis, of no constant."""
    return x / x.square().mean(-1, keepdim=True).sqrt()


def mp_silu(x):
    return x * x.sigmoid() / 0.596


def mp_sum(a, b, t):
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def test_a_transformer_written_out(randn):
    """Patches of 2 x 2 by `unfold`; half the channels say the row, half the column."""
    network = frozen(DiT((3, 4, 6), model_channels=16, num_blocks=2, num_heads=2))
    u = randn(5, 3, 4, 6)
    emb, embed = network.conditioning(T, None, None), PositionalEmbedding(8)
    rows, columns = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
    places = torch.cat([embed(rows.flatten()), embed(columns.flatten())], dim=1)
    h = network.input(nn.functional.unfold(u, 2, stride=2).transpose(1, 2)) + places.double()
    for block in network.blocks:
        qkv = block.attention.qkv(block.norm1(h, emb))
        q, k, v = (each.unflatten(-1, (2, 8)) for each in qkv.chunk(3, dim=-1))
        h = h + block.attention.out(softmax_attention(unit(q), unit(k), v))
        y = block.inner(block.norm2(h, emb))
        gelu = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        h = h + block.outer(gelu)
    F = network.output(network.output_norm(h, emb)).transpose(1, 2)
    expected = nn.functional.fold(F, (4, 6), 2, stride=2)
    torch.testing.assert_close(network(u, T), expected, **TIGHT)


def test_a_perceptron_written_out(randn):
    network, u = (
        frozen(MLP((2, 3), model_channels=24, num_blocks=2, emb_channels=16)),
        randn(5, 2, 3),
    )
    emb = network.conditioning(T, None, None)
    h = network.input(u.reshape(5, 6))
    for block in network.blocks:
        y = block.norm(block.inner(h), emb)
        h = h + block.outer(y * y.sigmoid())
    y = network.output_norm(h, emb)
    torch.testing.assert_close(network(u, T), network.output(y * y.sigmoid()).reshape(5, 2, 3))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("resample", ["down", "up", "keep"])
def test_a_block_of_edm2_written_out(randn, side, resample):
    """Shares of 0.3, SiLU before both convolutions; the encoder's trunk has unit pixels."""
    block = frozen(EDM2Block(6, 8, 7, side, resample, num_heads=2, dropout=0.3))
    x, emb = randn(5, 6, 4, 2), randn(5, 7)
    found = block(x, emb)
    if resample == "down":
        x = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
    elif resample == "up":
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    if side == "encoder":
        x = block.skip(x)
        x = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
    y = block.conv2(mp_silu(block.norm(block.conv1(mp_silu(x)), emb)))
    x = mp_sum(x if side == "encoder" else block.skip(x), y, 0.3)
    tokens = block.attention.qkv(x).flatten(2).transpose(1, 2)
    q, k, v = (unit(each.unflatten(-1, (2, 4))) for each in tokens.chunk(3, dim=-1))
    y = softmax_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    expected = mp_sum(x, block.attention.out(y), 0.3)
    # The norms of queries, keys and values have eps^2 = 1e-8 beside their mean squares.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_network_of_edm2_written_out(randn):
    """A channel of ones, both parts of a join with half of the square, the gain at the end."""
    sizes = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "channels_per_head": 4}
    network = frozen(EDM2UNet((3, 4, 8), attention_pixels=(8,), **sizes))
    u = randn(5, 3, 4, 8)
    emb = network.conditioning(T, None, None, None)
    x = network.input(torch.cat([u, torch.ones(5, 1, 4, 8).double()], dim=1))
    skips = [x]
    for block in network.encoder:
        skips.append(x := block(x, emb))
    for block, channels in zip(network.decoder, (16, 16, 32, 24, 16, 24, 16), strict=True):
        if x.shape[1] < channels:  # what a join brings to the block's own number
            other = skips.pop()
            factor = math.sqrt(channels / 2)
            parts = [part / math.sqrt(part.shape[1]) for part in (x, other)]
            x = factor * torch.cat(parts, dim=1)
        x = block(x, emb)
    assert not skips
    torch.testing.assert_close(network(u, T), network.output(x) * network.out_gain, **TIGHT)
    # The level whose longer side has 8 pixels attends, and not the block that halves it.
    attending = [block.attention is not None for block in network.encoder]
    assert attending == [True, False, False]


def test_dropout_of_edm2_drops_single_activations(randn):
    """Each of the 160 alone, and the others are scaled up."""
    block, seen = EDM2Block(4, 4, 7, "decoder", dropout=0.5).double(), []
    block.conv2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x, emb = randn(5, 4, 4, 2), randn(5, 7)
    block(x, emb)
    block.eval()(x, emb)
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 2 * seen[1][kept])
    shares = kept.double().mean((2, 3))
    assert bool(((shares > 0) & (shares < 1)).any())


@pytest.mark.parametrize("labels", [None, torch.tensor([2, 0, -1, 1, 2])])
def test_conditions_of_edm2_written_out(labels):
    """Features of variance 1, one-hot labels of mean square 1, half a share each."""
    layer = MPConditioning(10, 12, 3, True, True, TimeEmbedding())
    layer = frozen(layer)
    scale, end = torch.linspace(1, 2, 5).double(), T / 2
    features = math.sqrt(2) * PositionalEmbedding(10)(T)
    one_hot = torch.zeros(5, 3, dtype=torch.float64)
    if labels is not None:
        for sample, label in enumerate(labels.tolist()):
            if label >= 0:
                one_hot[sample, label] = math.sqrt(3)

    def by_rows(layer: MPLinear, x):
        return x @ (layer.weight / layer.weight.norm(dim=1, keepdim=True)).T

    emb = mp_sum(by_rows(layer.time, features), by_rows(layer.label, one_hot), 0.5)
    for added, scalar in ((layer.guidance, scale), (layer.end, end)):
        emb = emb + PositionalEmbedding(10)(scalar) @ added.linear.weight.T
    # The rows' norms have eps^2 = 1e-8 beside mean squares of 0.09.
    torch.testing.assert_close(layer(T, labels, scale, end), mp_silu(emb), rtol=1e-6, atol=1e-6)


def test_conditions_of_the_others_written_out(randn):
    """Time, class and scale are added, then SiLU, linear, SiLU; no class adds nothing."""
    network = frozen(MLP((3,), emb_channels=16, num_classes=3, guided=True, two_times=True))
    layer, labels, scale = network.conditioning, torch.tensor([2, 0, -1, 1, 2]), T + 1
    emb = layer.time(PositionalEmbedding(16)(T))
    classes = torch.cat([layer.label.weight, torch.zeros(1, 16).double()])[labels]
    emb = emb + classes + PositionalEmbedding(16)(scale) @ layer.guidance.linear.weight.T
    emb = emb + PositionalEmbedding(16)(T / 2) @ layer.end.linear.weight.T
    y = layer.out(emb * emb.sigmoid())
    torch.testing.assert_close(layer(T, labels, scale, T / 2), y * y.sigmoid(), **TIGHT)


def test_embeddings_that_the_paper_replaced_written_out():
    """EDM's: log(sigma) / 4, and Fourier features of random frequencies of std 16."""
    torch.testing.assert_close(TimeEmbedding("log").c_noise(T), T.tan().log() / 4)
    edm = TimeEmbedding("log", sigma_data=0.7)
    c_noise = TrigFlow(0.7).sigma_from_t(T).log() / 4
    torch.testing.assert_close(edm.c_noise(T), c_noise, rtol=0, atol=1e-15)
    assert torch.equal(TimeEmbedding().c_noise(T), T)
    torch.manual_seed(0)
    features = TimeEmbedding(features="fourier").make_features(20_000)
    assert isinstance(features, FourierEmbedding)
    assert float(features.frequencies.std()) == pytest.approx(16, rel=4 / (2 * 10_000) ** 0.5)
    angles = 2 * math.pi * T[:, None] * features.frequencies.double()
    torch.testing.assert_close(features(T), torch.cat([angles.cos(), angles.sin()], dim=1))


def test_the_features_of_edm2_written_out():
    """cos(f c + phi), f of std 2 pi, phi anywhere on the circle: mean square 1/2 at any c."""
    torch.manual_seed(0)
    layer = TimeEmbedding("log", "mp_fourier").make_features(20_000)
    f, phi = layer.frequencies.double(), layer.phases.double()
    assert float(f.std()) == pytest.approx(2 * math.pi, rel=4 / 40_000**0.5)
    assert 0 <= float(phi.min()) < 0.01
    assert 6.27 < float(phi.max()) < 2 * math.pi
    torch.testing.assert_close(layer(T), (T[:, None] * f + phi).cos())
    torch.testing.assert_close(
        layer(T).square().mean(1), torch.full((5,), 0.5).double(), atol=0.01, rtol=0
    )


@pytest.mark.parametrize(("transform", "sigma_data"), [("identity", 0.7), ("log", -0.7)])
def test_time_embeddings_take_the_spread_of_the_data_for_log_sigma_alone(transform, sigma_data):
    with pytest.raises(ValueError, match="a positive sigma_data, and only with transform log"):
        TimeEmbedding(transform, sigma_data=sigma_data)


@pytest.mark.parametrize("network", [MLP, EDM2UNet])
def test_a_time_embedding_of_another_path_is_refused(network):
    """The path owns sigma_data; a network may repeat it."""
    shape = (3, 8, 8) if network is EDM2UNet else (3,)
    built = network(shape, 64, time_embedding=TimeEmbedding("log", sigma_data=0.7))
    check_time_embeddings(built, 0.7)
    with pytest.raises(ValueError, match=r"must be that of the path, 0.6, got 0.7"):
        check_time_embeddings(built, 0.6)
