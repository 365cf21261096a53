# SPDX-License-Identifier: Apache-2.0
"""The networks' parts by hand, what each condition does, and what is refused."""

import pytest
import torch
from tiny import wake

from scm_lightning.networks import (
    MLP,
    AdaptiveDoubleNorm,
    DiT,
    PositionalEmbedding,
    UNet,
    WeightingHead,
    pixel_norm,
)

SHAPE = (2, 4, 6)
BUILDERS = [
    lambda **options: MLP(SHAPE, model_channels=24, num_blocks=2, **options),
    lambda dropout=0.0, **options: UNet(
        SHAPE,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attention_pixels=(6,),
        dropout=dropout,
        **options,
    ),
    lambda **options: DiT(SHAPE, model_channels=16, num_blocks=2, num_heads=2, **options),
]


def test_positional_embedding_by_hand():
    """Frequencies 1, 10000^(-1/2), 10000^-1 for six channels: cosines, then sines."""
    t = torch.tensor([0.0, 1.5], dtype=torch.float64)
    angles = t[:, None] * torch.tensor([1.0, 0.01, 1e-4], dtype=torch.float64)
    expected = torch.cat([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(PositionalEmbedding(6)(t), expected)


def test_embedding_of_time_does_not_blow_up_near_pi_half():
    """Its derivative is at most 1 per channel everywhere; log sigma's would be infinite."""
    t = torch.linspace(0, torch.pi / 2, 50, dtype=torch.float64)
    emb = PositionalEmbedding(64)
    _, derivative = torch.func.jvp(emb, (t,), (torch.ones_like(t),))
    assert float(derivative.abs().max()) <= 1.0


def test_pixel_norm_gives_unit_mean_square(randn):
    x = randn(5, 8)
    torch.testing.assert_close(pixel_norm(x).square().mean(1), torch.ones(5).double())
    torch.testing.assert_close(pixel_norm(3 * x), pixel_norm(x))


def test_double_norm_by_hand(randn):
    """norm(x) pnorm(s) + pnorm(b), with s and b linear in the embedding."""
    layer, x, emb = wake(AdaptiveDoubleNorm(8, 3)).double(), 5 * randn(5, 8), randn(5, 3)
    scale = emb @ layer.scale.weight.T + layer.scale.bias
    shift = emb @ layer.shift.weight.T + layer.shift.bias
    centred = x - x.mean(1, keepdim=True)
    normed = centred / centred.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(
        layer(x, emb), normed * pixel_norm(scale) + pixel_norm(shift), rtol=1e-6, atol=1e-6
    )


def test_a_fresh_double_norm_scales_by_one_where_the_embedding_is_zero(randn):
    """Its slope there is 1 / sqrt(eps) if the scale's bias is zero, and any sign if it is drawn."""
    layer, x = AdaptiveDoubleNorm(8, 3).double(), randn(5, 8, 4)
    nothing = torch.zeros(5, 3).double()
    shift = pixel_norm(layer.shift(nothing))[:, :, None]
    normed = torch.nn.functional.group_norm(x, 1, eps=1e-6)
    torch.testing.assert_close(layer(x, nothing), normed + shift, rtol=1e-7, atol=1e-7)


def test_weighting_head_starts_at_zero_and_depends_on_time():
    head, t = WeightingHead(), torch.linspace(0, 1.5, 5)
    assert torch.equal(head(t), torch.zeros(5))
    assert len(wake(head)(t).unique()) == 5


@pytest.mark.parametrize("build", BUILDERS)
def test_every_condition_changes_the_output(randn, build):
    """Time, class and guidance scale; and no class differs from every class."""
    network = wake(build(num_classes=3, guided=True)).double().eval().requires_grad_(False)
    u, t, one = randn(5, *SHAPE), torch.full((5,), 0.8).double(), torch.ones(5).double()
    labels = torch.zeros(5, dtype=torch.int64)
    base = network(u, t, labels, one)
    for other in (
        network(u, t + 0.1, labels, one),
        network(u, t, labels + 1, one),
        network(u, t, None, one),
        network(u, t, labels, 2 * one),
    ):
        assert float((other - base).abs().max()) > 1e-3
    assert base.shape == u.shape


@pytest.mark.parametrize("build", BUILDERS)
def test_samples_do_not_see_each_other(randn, build):
    network, u = wake(build()).double().eval(), randn(5, *SHAPE)
    t = torch.linspace(0.1, 1.5, 5, dtype=torch.float64)
    torch.testing.assert_close(network(u, t)[3:4], network(u[3:4], t[3:4]))


@pytest.mark.parametrize("build", BUILDERS)
def test_a_fresh_network_says_zero_and_learns(randn, build):
    """The output layer starts at zero, and gets a gradient."""
    network, u = build().double(), randn(5, *SHAPE)
    F = network(u, torch.ones(5).double())
    assert float(F.detach().abs().max()) < 1.0
    (F - u).square().mean().backward()
    assert float(network.output.weight.grad.norm()) > 1e-3


@pytest.mark.parametrize("build", BUILDERS)
def test_dropout_acts_in_training_only(randn, build):
    network, u, t = wake(build(dropout=0.5)).double(), randn(5, *SHAPE), torch.ones(5).double()
    assert not torch.equal(network(u, t), network(u, t))
    network.eval()
    assert torch.equal(network(u, t), network(u, t))


@pytest.mark.parametrize("build", BUILDERS)
def test_misfits_are_refused(randn, build):
    u, t = randn(5, *SHAPE).float(), torch.ones(5)
    labels = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"of shape \(2, 4, 6\), got \(2, 4, 5\)"):
        build()(u[..., :5], t)
    with pytest.raises(ValueError, match="built without classes but got labels"):
        build()(u, t, labels)
    with pytest.raises(ValueError, match="guided=False got a guidance scale"):
        build()(u, t, None, t)
    with pytest.raises(ValueError, match="guided=True got no guidance scale"):
        build(guided=True)(u, t)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        UNet((1, 6, 8), channel_mult=(1, 1, 1))
    with pytest.raises(ValueError, match="must divide the channels"):
        AdaptiveDoubleNorm(8, 4, num_groups=3)
    with pytest.raises(ValueError, match="tokens take a single one"):
        AdaptiveDoubleNorm(8, 4, num_groups=2, tokens=True)
    with pytest.raises(ValueError, match="divisible by patch_size 3"):
        DiT((1, 6, 8), patch_size=3)
    with pytest.raises(ValueError, match="heads must divide the channels"):
        DiT((1, 6, 8), model_channels=16, num_heads=3)
    with pytest.raises(ValueError, match="even number of at least 4 channels"):
        PositionalEmbedding(5)


def test_tokens_are_normed_one_by_one(randn):
    """(B, L, C): every token as if it were alone, with the same scale and shift."""
    tokens = wake(AdaptiveDoubleNorm(8, 3, tokens=True)).double()
    vectors = AdaptiveDoubleNorm(8, 3).double()
    vectors.load_state_dict(tokens.state_dict())
    x, emb = randn(5, 4, 8), randn(5, 3)
    torch.testing.assert_close(tokens(x, emb)[:, 2], vectors(x[:, 2], emb))


def test_patches_keep_their_places(randn):
    """A DiT whose blocks are cut off sees a pixel in its own patch alone."""
    network = wake(DiT(SHAPE, model_channels=16, num_blocks=0, num_heads=2)).double()
    u, t = randn(5, *SHAPE), torch.ones(5).double()
    moved = u.clone()
    moved[:, 0, 0, 5] += 1.0
    changed = (network(moved, t) - network(u, t)).abs().amax(dim=(0, 1)) > 1e-9
    assert changed[:2, 4:].all()
    assert int(changed.sum()) == 4
