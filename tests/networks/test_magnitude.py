# SPDX-License-Identifier: Apache-2.0
"""Magnitude-preserving parts: closed forms, unit variance, derivatives at zero, stored weights."""

import copy
import math

import pytest
import torch
from torch import nn

from scm_lightning.autodiff.dual import DualNumbers, fallback_calls
from scm_lightning.networks import normalize_weights, pixel_norm
from scm_lightning.networks.magnitude import (
    MPConv2d,
    MPLinear,
    edm2_normalize,
    mp_concat,
    mp_silu,
    mp_sum,
    normalize,
)


def rms(x):
    return float(x.detach().square().mean().sqrt())


def build():
    """Layers whose stored weights have drifted, as after an optimizer step."""
    torch.manual_seed(0)
    layers = nn.Sequential(MPConv2d(3, 7, 3), nn.Flatten(), MPLinear(7 * 4 * 2, 6)).double()
    with torch.no_grad():
        for parameter in layers.parameters():
            factors = torch.linspace(0.2, 5.0, len(parameter), dtype=parameter.dtype)
            parameter.mul_(factors.reshape(-1, *[1] * (parameter.ndim - 1)))
    return layers


def test_normalize_by_hand(randn):
    """x / sqrt(mean x^2 + 1e-8), along any axis; the paper's pixel norm is the same formula."""
    x = randn(5, 7, 4, 3)
    expected = x / (x.square().mean(3, keepdim=True) + 1e-8).sqrt()
    torch.testing.assert_close(normalize(x, dim=3), expected)
    torch.testing.assert_close(normalize(x), pixel_norm(x))


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2, 1.0, 1e3])
def test_normalize_stays_close_to_the_original_formula(randn, scale):
    """x / (1e-4 + ||x|| / sqrt(n)) of EDM2: the denominators differ by less than 1e-4."""
    x = scale * randn(5, 7)
    root = x.norm(dim=1, keepdim=True) / math.sqrt(7)
    denominator = x / normalize(x)
    assert bool(((denominator - root > 0) & (denominator - root <= 1e-4)).all())
    torch.testing.assert_close(edm2_normalize(x), x / (1e-4 + root))
    torch.testing.assert_close(edm2_normalize(x.T, dim=0).T, x / (1e-4 + root))


@pytest.mark.parametrize("normalize", [normalize, edm2_normalize])
def test_normalize_has_a_derivative_at_zero(randn, normalize):
    """Slope 1e4, where ||x|| itself has none; forward, reverse and by dual numbers."""
    zero, direction = torch.zeros(5, 7, dtype=torch.float64, requires_grad=True), randn(5, 7)
    _, tangent = torch.func.jvp(normalize, (zero,), (direction,))
    torch.testing.assert_close(tangent, 1e4 * direction)
    fallback_calls.clear()
    with DualNumbers() as level:
        _, tangent = level.part(normalize(level.join(zero.clone(), direction)))
    torch.testing.assert_close(tangent, 1e4 * direction)
    assert not fallback_calls
    (normalize(zero) * direction).sum().backward()
    torch.testing.assert_close(zero.grad, 1e4 * direction)


def test_normalize_of_half_values_does_not_overflow(randn):
    """Squares beyond float16, and an eps below it."""
    y = normalize((1e4 * randn(5, 7)).half())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.square().mean(1), torch.ones(5), rtol=1e-3, atol=0)


def test_mp_silu_keeps_unit_variance(randn):
    """0.596^2 is E silu(x)^2 for standard normal x; of a million, its root errs by 0.001."""
    x = randn(1_000_000)
    assert rms(mp_silu(x)) == pytest.approx(1.0, abs=5e-3)
    torch.testing.assert_close(mp_silu(x[:5]), x[:5] * x[:5].sigmoid() / 0.596)


def test_mp_sum_by_hand(randn):
    a, b = randn(5, 7), randn(5, 7)
    torch.testing.assert_close(mp_sum(a, b, 0.3), (0.7 * a + 0.3 * b) / math.sqrt(0.58))
    torch.testing.assert_close(mp_sum(a, b, 0.0), a)
    torch.testing.assert_close(mp_sum(a, b, 1.0), b)


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_mp_concat_has_unit_variance_and_the_shares_asked_for(randn, t):
    """Of the sum of squares the parts have (1 - t)^2 and t^2, however many channels each has.

    The smaller part has 120,000 values: the standard error of its mean square is 0.4 %.
    """
    a, b = randn(50, 3, 40, 20), randn(50, 24, 40, 20)
    joined = mp_concat(a, b, t)
    shares = [rms(part) ** 2 * part.shape[1] for part in joined.split([3, 24], dim=1)]
    assert rms(joined) == pytest.approx(1.0, abs=1e-2)
    assert shares[0] / shares[1] == pytest.approx(((1 - t) / t) ** 2, rel=2e-2)
    torch.testing.assert_close(joined[:, :3], joined[0, 0, 0, 0] / a[0, 0, 0, 0] * a)


def test_layers_divide_by_the_norm_of_every_row(randn):
    x, y = randn(5, 3, 4, 2), randn(5, 8)
    conv, linear = MPConv2d(3, 7, 3).double(), MPLinear(8, 6).double()
    by_hand = conv.weight / conv.weight.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(
        conv(x), nn.functional.conv2d(x, by_hand, padding=1), rtol=1e-6, atol=1e-7
    )
    rows = linear.weight / linear.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(linear(y), y @ rows.T, rtol=1e-6, atol=1e-7)


def test_layers_keep_unit_variance(randn):
    """Pixels at the border have fewer neighbours, so a pointwise kernel is measured."""
    assert rms(MPConv2d(48, 64, 1).double()(randn(5, 48, 16, 12))) == pytest.approx(1.0, abs=0.05)
    assert rms(MPLinear(48, 64).double()(randn(700, 48))) == pytest.approx(1.0, abs=0.05)


def test_gradients_are_orthogonal_to_the_weights(randn):
    """The length of a row says nothing, so a step along the gradient can only lengthen it."""
    layers = build()
    layers(randn(5, 3, 4, 2)).square().sum().backward()
    for parameter in layers.parameters():
        along = (parameter * parameter.grad).flatten(1).sum(1)
        size = parameter.flatten(1).norm(dim=1) * parameter.grad.flatten(1).norm(dim=1)
        assert float((along / size).detach().abs().max()) < 1e-6


def test_normalized_weights_have_unit_variance_and_the_same_output(randn):
    """Once is enough: a second time changes nothing."""
    layers, x = build(), randn(5, 3, 4, 2)
    before = layers(x)
    normalize_weights(layers)
    for parameter in layers.parameters():
        torch.testing.assert_close(
            parameter.flatten(1).square().mean(1), torch.ones(len(parameter)).double()
        )
    # Rows of unit mean square and of 0.04 differ in what eps = 1e-8 takes from them.
    torch.testing.assert_close(layers(x), before, rtol=1e-6, atol=1e-6)
    again = copy.deepcopy(layers)
    normalize_weights(again)
    for one, other in zip(again.parameters(), layers.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=4e-15, atol=4e-15)  # 18 eps


def test_other_layers_are_left_alone():
    layers = nn.ModuleList([MPConv2d(3, 7, 3), MPLinear(8, 6), nn.Linear(8, 6)])
    before = copy.deepcopy(layers)
    normalize_weights(layers)
    assert torch.equal(layers[2].weight, before[2].weight)
    assert not torch.equal(layers[1].weight, before[1].weight)


def test_a_row_of_zeros_stays_zero(randn):
    layer = MPLinear(8, 6)
    with torch.no_grad():
        layer.weight[2] = 0.0
    normalize_weights(layer)
    y = layer(randn(5, 8).float())
    assert torch.equal(y[:, 2], torch.zeros(5))
    assert bool(y.isfinite().all())


def test_linear_layers_are_precise_under_autocast(randn):
    layer, x = MPLinear(8, 6), randn(5, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, layer(x))


def test_sharded_weights_are_normalised_without_communication():
    """The second rank's three of seven rows; the fake process group answers nothing."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    layers = build()
    expected = copy.deepcopy(layers)
    normalize_weights(expected)
    init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2,))
        for name in ("0", "2"):
            full = layers.get_submodule(name).weight.detach()
            local = full.chunk(2)[1].clone()
            sharded = DTensor.from_local(
                local, mesh, [Shard(0)], shape=full.shape, stride=full.stride()
            )
            layers.get_submodule(name).weight = nn.Parameter(sharded)
        with CommDebugMode() as communication:
            normalize_weights(layers)
        assert communication.get_total_counts() == 0
        for name in ("0", "2"):
            found = layers.get_submodule(name).weight
            assert found.placements == (Shard(0),)
            row_block = expected.get_submodule(name).weight.chunk(2)[1]
            torch.testing.assert_close(found.to_local(), row_block)
    finally:
        destroy_process_group()
