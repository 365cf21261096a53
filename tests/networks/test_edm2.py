# SPDX-License-Identifier: Apache-2.0
"""The EDM2 U-Net: sizes, magnitudes, conditions, dropout, precision, and its derivative."""

import pytest
import torch
from tiny import derive, rounding
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from scm_lightning.autodiff.dual import fallback_calls
from scm_lightning.core import NULL_LABEL, consistency_loss, normalize_tangent, tangent
from scm_lightning.networks import (
    EDM2_SIZES,
    EDM2UNet,
    normalize_weights,
    without_added_conditions,
)
from scm_lightning.networks.edm2_blocks import EDM2Block, MPDoubleNorm
from scm_lightning.networks.magnitude import normalize

SIGMA_DATA = 0.7
SHAPE = (3, 8, 4)
METHODS = ["dual", "dual_checkpoint", "func", "two_pass", "finite_difference"]


def build(**options):
    """Two levels of 8 x 4 and 4 x 2 pixels; both attend, with two heads and four."""
    torch.manual_seed(0)
    small = {"model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "channels_per_head": 8}
    return EDM2UNet(SHAPE, **{**small, "attention_pixels": (8, 4), "num_classes": 7, **options})


def wake(network):
    """An output, and a guidance scale and second time that say something; float64."""
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if name == "out_gain":
            nn.init.ones_(parameter)
        elif ".guidance." in name or ".end." in name:
            nn.init.normal_(parameter, std=0.2)
    return network.double()


def inputs(randn):
    t = torch.tensor([0.01, 0.3, 0.9, 1.3, 1.56], dtype=torch.float64)
    return {
        "x_t": SIGMA_DATA * randn(5, *SHAPE),
        "t": t,
        "dx_dt": SIGMA_DATA * randn(5, *SHAPE),
        "sigma_data": SIGMA_DATA,
        "labels": torch.tensor([0, 6, NULL_LABEL, 1, 0]),
        "guidance": 1 + t / 2,
    }


def step(method, network, given):
    """One sCD step: loss, output, derivative and gradients, from the same random state."""
    torch.manual_seed(7)
    network.zero_grad()
    F, J = derive(method, network, given)
    x_t, t, dx_dt = given["x_t"], given["t"], given["dx_dt"]
    g = tangent(F.detach(), J, x_t, dx_dt, t, sigma_data=SIGMA_DATA, r=1.0)
    loss = consistency_loss(F, normalize_tangent(g), torch.zeros_like(t)).mean()
    loss.backward()
    return [loss.detach(), F.detach(), J, *(p.grad.clone() for p in network.parameters())]


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_are_the_papers():
    """Within 0.1 % of Table 5, in millions; with a shift, S would have 293.9. XS is EDM2's own."""
    table = {"XS": 124.7, "S": 280.2, "M": 497.8, "L": 777.6, "XL": 1119.4, "XXL": 1523.4}
    assert ["XXS", *table] == list(EDM2_SIZES)
    with torch.device("meta"):
        found = {
            size: count(EDM2UNet((4, 64, 64), model_channels, num_classes=1000)) / 1e6
            for size, model_channels in EDM2_SIZES.items()
            if size != "XXS"
        }
        shifted = count(EDM2UNet((4, 64, 64), num_classes=1000, shift=True)) / 1e6
    assert found == pytest.approx(table, rel=1e-3)
    assert shifted == pytest.approx(293.9, rel=1e-3)


def test_multiplications_are_those_of_edm2_s():
    """101 billion for S, by its table; the counter leaves out attention's half a percent.

    Attention is at 16x16 and 8x8, with 576 and 768 channels: in three blocks of the encoder and
    four of the decoder each, and in the middle one; queries by keys, and weights by values.
    """
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = EDM2UNet((4, 64, 64), num_classes=1000)
        F = network(torch.randn(1, 4, 64, 64), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    assert F.shape == (1, 4, 64, 64)
    attention = 7 * 2 * 256**2 * 576 + 8 * 2 * 64**2 * 768
    assert round((counter.get_total_flops() // 2 + attention) / 1e9) == 101


@pytest.mark.parametrize("options", [{}, {"shift": True}, {"num_blocks": 3, "num_classes": 0}])
def test_every_block_keeps_unit_magnitude(randn, options):
    """From 0.8 to 1.1 all the way through.

    Less than 1 is what averages lose: zero padding at the border, attention over alike values. A
    branch lost altogether takes the trunk to 0.7 / sqrt(0.58) = 0.92 of what it was, and most
    blocks of the decoder join it with an output of the encoder, whose trunk is normalised.
    """
    torch.manual_seed(0)
    network = EDM2UNet(
        (3, 16, 16), **{"model_channels": 64, "num_blocks": 2, "num_classes": 7, **options}
    )
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, EDM2Block) or name in ("input", "output", "conditioning"):
            module.register_forward_hook(
                lambda module, args, out, name=name: found.update(
                    {name: out.square().mean() ** 0.5}
                )
            )
    labels = torch.arange(5) if network.conditioning.num_classes else None
    with torch.no_grad():
        network(randn(5, 3, 16, 16).float(), torch.linspace(0.1, 1.5, 5), labels)
    assert len(found) == 3 + len(network.encoder) + len(network.decoder)
    output, emb = found.pop("output"), found.pop("conditioning")
    assert 0.7 < float(output) < 1.3  # three channels alone, of a kernel each
    assert 0.8 < float(emb) < 1.2
    assert {name: round(float(v), 3) for name, v in found.items() if not 0.8 < v < 1.1} == {}


def test_double_norm_by_hand(randn):
    """normalize(x) pnorm(s), and with a shift (normalize(x) pnorm(s) + pnorm(b)) / sqrt(2)."""
    x, emb = randn(5, 6, 4, 3), randn(5, 8)
    layer = MPDoubleNorm(6, 8, shift=True).double()
    normalize_weights(layer)
    scale = normalize(emb @ layer.scale.weight.T)[:, :, None, None]
    shift = normalize(emb @ layer.shift.weight.T)[:, :, None, None]
    by_hand = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt() * scale
    tolerance = {"rtol": 1e-6, "atol": 1e-6}  # eps of the weights and of their products
    torch.testing.assert_close(layer(x, emb), (by_hand + shift) / 2**0.5, **tolerance)
    layer.shift = None
    torch.testing.assert_close(layer(x, emb), by_hand, **tolerance)


def test_a_fresh_network_says_zero_and_its_gain_learns(randn):
    network, u = build(), randn(5, *SHAPE).float()
    F = network(u, torch.ones(5))
    assert torch.equal(F, torch.zeros_like(F))
    (F - u).square().mean().backward()
    assert abs(float(network.out_gain.grad)) > 1e-4


def test_normalised_weights_say_the_same(randn):
    """After a step of the optimizer has changed their lengths; the gain is left alone."""
    network, given = wake(build()), (randn(5, *SHAPE), torch.ones(5).double())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.7)
        before = network(*given)
        normalize_weights(network)
        torch.testing.assert_close(network(*given), before, rtol=1e-6, atol=1e-6)
    assert float(network.out_gain.detach()) == pytest.approx(1.7)
    assert float(network.input.weight.detach().square().mean()) == pytest.approx(1.0)


def test_every_condition_changes_the_output(randn):
    """Time, class, guidance scale, second time; and no class differs from every class."""
    network = wake(build(guided=True, two_times=True)).eval().requires_grad_(False)
    u, t, one = randn(5, *SHAPE), torch.full((5,), 0.8).double(), torch.ones(5).double()
    labels = torch.zeros(5, dtype=torch.int64)
    base = network(u, t, labels, one, t)
    for other in (
        network(u, t + 0.1, labels, one, t),
        network(u, t, labels + 6, one, t),
        network(u, t, None, one, t),
        network(u, t, labels, 2 * one, t),
        network(u, t, labels, one, t - 0.5),
    ):
        assert float((other - base).abs().max()) > 1e-3


def test_the_null_label_is_no_class(randn):
    """Sample by sample; a label that no class has is refused."""
    network, u, t = wake(build()).eval(), randn(5, *SHAPE), torch.ones(5).double()
    labels = torch.tensor([3, NULL_LABEL, 0, NULL_LABEL, 6])
    mixed, without, given = network(u, t, labels), network(u, t), network(u, t, labels.clamp(0))
    null = labels == NULL_LABEL
    torch.testing.assert_close(mixed[null], without[null])
    torch.testing.assert_close(mixed[~null], given[~null])
    assert float((mixed - without).detach()[~null].abs().amax(dim=(1, 2, 3)).min()) > 1e-3
    for wrong in (7, -2):
        with pytest.raises(RuntimeError, match="Class values"):
            network(u, t, torch.full((5,), wrong))


def test_a_guided_student_starts_as_its_teacher(randn):
    """Guidance scale and second time say nothing at first, and get a gradient."""
    student = build(guided=True, two_times=True)
    nn.init.ones_(student.out_gain)
    teacher, u, t = without_added_conditions(student), randn(5, *SHAPE).float(), torch.ones(5)
    F = student(u, t, None, 2 * t, t)
    assert torch.equal(F, teacher(u, t))
    F.square().sum().backward()
    assert float(student.conditioning.guidance.linear.weight.grad.norm()) > 0
    assert float(student.conditioning.end.linear.weight.grad.norm()) > 0


def test_samples_do_not_see_each_other(randn):
    network, u = wake(build()).eval(), randn(5, *SHAPE)
    t = torch.linspace(0.1, 1.5, 5, dtype=torch.float64)
    torch.testing.assert_close(network(u, t)[3:4], network(u[3:4], t[3:4]))


def test_dropout_acts_at_few_pixels_and_in_training_only(randn):
    """Levels of 32, 16 and 8 pixels on their longer side: the first drops nothing."""
    network = EDM2UNet((3, 32, 8), model_channels=64, channel_mult=(1, 1, 1), dropout=0.3)
    rates = {}
    for block in [*network.encoder, *network.decoder]:
        block.norm.register_forward_hook(
            lambda module, args, out, rate=block.dropout.p: rates.setdefault(
                out.shape[2], set()
            ).add(rate)
        )
    u, t = randn(2, 3, 32, 8).float(), torch.ones(2)
    network(u, t)
    assert rates == {32: {0.0}, 16: {0.3}, 8: {0.3}}
    nn.init.ones_(network.out_gain)
    assert not torch.equal(network(u, t), network(u, t))
    network.eval()
    assert torch.equal(network(u, t), network(u, t))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_time_and_results_in_float32(randn, dtype):
    """Autocast: the embedding is float32's own, output and derivative finite and close to it."""
    network, given = wake(build(guided=True)).eval(), inputs(randn)
    exact = derive("dual", network, given)
    network = network.float()
    half = {
        name: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in given.items()
    }
    conditions = half["t"], half["labels"], half["guidance"], None
    with torch.autocast("cpu", dtype), torch.no_grad():
        found = derive("dual", network, half)
        emb = network.conditioning(*conditions)
    assert {found[0].dtype, found[1].dtype, emb.dtype} == {torch.float32}
    torch.testing.assert_close(emb, network.conditioning(*conditions).detach(), rtol=0, atol=0)
    for one, other in zip(found, exact, strict=True):
        error = float((one - other).detach().norm() / other.detach().norm())
        assert 1e-5 < error < rounding(network, dtype)


@pytest.mark.parametrize("options", [{}, {"shift": True}])
def test_methods_agree_on_loss_derivative_and_gradients(randn, options):
    """With attention, labels, guidance and dropout, in float64, and without any fallback."""
    network, given = wake(build(guided=True, dropout=0.4, **options)).train(), inputs(randn)
    fallback_calls.clear()
    found = {method: step(method, network, given) for method in METHODS}
    assert not fallback_calls
    oracle = found["two_pass"]
    for method in ("dual", "dual_checkpoint", "func"):
        torch.testing.assert_close(found[method], oracle, rtol=1e-9, atol=1e-9)
    derivative = found["finite_difference"][2]
    torch.testing.assert_close(derivative, oracle[2], rtol=1e-4, atol=1e-4)
    assert float(oracle[2].abs().max()) > 0.1
    torch.testing.assert_close(found["finite_difference"][1], oracle[1], rtol=1e-9, atol=1e-9)


def test_misfits_are_refused(randn):
    u, t = randn(5, *SHAPE).float(), torch.ones(5)
    with pytest.raises(ValueError, match=r"of shape \(3, 8, 4\), got \(3, 8, 3\)"):
        build()(u[..., :3], t)
    with pytest.raises(ValueError, match="built without classes but got labels"):
        build(num_classes=0)(u, t, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="guided=True got no guidance scale"):
        build(guided=True)(u, t)
    with pytest.raises(ValueError, match=r"divisible by 4, got \(3, 8, 6\); use fewer levels"):
        EDM2UNet((3, 8, 6), channel_mult=(1, 1, 1))
    with pytest.raises(ValueError, match="multiple of channels_per_head, got 16 and 12"):
        build(channels_per_head=12)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_step_at_the_width_of_size_s(randn):
    """EDM2-S on 16 x 16 pixels in float64: loss, derivative and gradients equal two_pass."""
    torch.manual_seed(0)
    network = wake(EDM2UNet((4, 16, 16), EDM2_SIZES["S"], num_classes=1000, guided=True))
    t = torch.tensor([0.3, 1.3], dtype=torch.float64)
    given = {
        "x_t": SIGMA_DATA * randn(2, 4, 16, 16),
        "t": t,
        "dx_dt": SIGMA_DATA * randn(2, 4, 16, 16),
        "sigma_data": SIGMA_DATA,
        "labels": torch.tensor([3, NULL_LABEL]),
        "guidance": 1 + t / 2,
    }
    fallback_calls.clear()
    found, oracle = step("dual", network, given), step("two_pass", network, given)
    assert not fallback_calls
    torch.testing.assert_close(found, oracle, rtol=1e-9, atol=1e-9)
    assert float(oracle[2].abs().max()) > 1e-2
