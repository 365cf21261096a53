# SPDX-License-Identifier: Apache-2.0
"""Networks that are told a text: its derivative, its mask, its order, and what is refused."""

import pytest
import torch
from tiny import rounding, wake

from scm_lightning.autodiff import DualArithmetic, TangentComputer
from scm_lightning.autodiff.dual import fallback_calls
from scm_lightning.autodiff.methods import Point
from scm_lightning.core import Bound, Conditions, Guided
from scm_lightning.networks import DiT, UNet
from scm_lightning.networks.cross_attention import CrossAttention, TextTokens

SHAPE, WIDTH, NUM, LENGTH = (2, 4, 6), 5, 3, 4
BUILDERS = [
    lambda num_blocks=2, **options: DiT(
        SHAPE, model_channels=16, num_blocks=num_blocks, num_heads=2, **options
    ),
    lambda **options: UNet(
        SHAPE,
        model_channels=16,
        channel_mult=(1, 2),
        num_blocks=1,
        attention_pixels=(6,),
        dropout=0.0,
        **options,
    ),
]
LENGTHS = {"all": (4, 4, 4), "some": (4, 2, 1), "empty": (0, 0, 0), "mixed": (3, 0, 4)}


def awake(build, **options):
    return wake(build(text_channels=WIDTH, **options)).double().eval()


@pytest.fixture
def given(randn):
    """u, t, velocity and a text of LENGTH tokens."""
    t = torch.linspace(0.2, 1.4, NUM, dtype=torch.float64)
    return randn(NUM, *SHAPE), t, randn(NUM, *SHAPE), randn(NUM, LENGTH, WIDTH)


def masked(lengths, length=LENGTH):
    return torch.arange(length)[None] < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("lengths", [None, *LENGTHS])
def test_the_derivative_is_that_of_other_methods(given, build, lengths):
    """Rules of dual numbers alone, checkpoints, torch.func.jvp and two passes, in float64."""
    network, (x_t, t, dx_dt, text) = awake(build, num_classes=3), given
    named = {"text": text, **({"text_mask": masked(LENGTHS[lengths])} if lengths else {})}
    results = {}
    for method in ("func", "two_pass", "dual", "dual_checkpoint"):
        network.zero_grad()
        f = Bound(network, torch.tensor([0, -1, 2]), named=named)
        fallback_calls.clear()
        F, J = TangentComputer(method)(f, x_t, t, dx_dt, sigma_data=0.7)
        assert not fallback_calls
        F.square().sum().backward()
        results[method] = [F.detach(), J, *(p.grad.clone() for p in network.parameters())]
    assert float(results["func"][1].norm()) > 0.1
    for method in ("two_pass", "dual", "dual_checkpoint"):
        for ours, theirs in zip(results[method], results["func"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("build", BUILDERS)
def test_what_lies_behind_a_text_has_no_effect(given, build):
    """Neither its values, to the bit, nor how much of it there is."""
    network, (u, t, _, text), mask = awake(build), given, masked((4, 2, 0))
    spoilt = text.masked_fill(~mask[..., None], torch.nan)
    base = network(u, t, text=text, text_mask=mask)
    assert torch.equal(network(u, t, text=spoilt, text_mask=mask), base)
    longer = torch.cat([text, text], dim=1)
    more = network(u, t, text=longer, text_mask=masked((4, 2, 0), 2 * LENGTH))
    torch.testing.assert_close(more, base, rtol=1e-12, atol=1e-12)
    alone = network(u[1:2], t[1:2], text=text[1:2, :2])
    torch.testing.assert_close(alone, base[1:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("build", BUILDERS)
def test_an_empty_text_is_learned_and_takes_part_in_guidance(given, build):
    """It depends on the network's own token, and is what guidance leads away from."""
    network, (u, t, _, text), mask = awake(build), given, masked((4, 2, 1))
    nothing = torch.zeros_like(mask)
    none = network(u, t, text=text, text_mask=nothing)
    some = network(u, t, text=text, text_mask=mask)
    conditions = Conditions(named={"text": text, "text_mask": mask})
    guided = Guided(network, conditions, torch.full((NUM,), 3.0).double())
    torch.testing.assert_close(guided(u, t), none + 3 * (some - none))
    with torch.no_grad():
        network.text.learned.mul_(-1.0)
    moved = network(u, t, text=text, text_mask=nothing)
    assert (moved - none).abs().flatten(1).amax(1).min() > 1e-4


@pytest.mark.parametrize("build", BUILDERS)
def test_order_and_words_of_a_text_count(given, build):
    network, (u, t, _, text) = awake(build), given
    base = network(u, t, text=text)
    for other in (text.flip(1), text.roll(1, 0)):
        assert (network(u, t, text=other) - base).abs().flatten(1).amax(1).min() > 1e-4


@pytest.mark.parametrize("build", BUILDERS)
def test_a_text_adds_nothing_at_the_start_and_is_learned_at_once(given, build):
    """A network that is awake but for what is zero at the start says the same of every text."""
    network, (u, t, _, text) = wake(build(text_channels=WIDTH)), given
    fresh = build(text_channels=WIDTH)
    silent = [
        f"{name}.{part}"
        for name, each in network.named_modules()
        for part in ("pooled.weight", "out.weight", "out.bias")
        if isinstance(each, (CrossAttention, TextTokens)) and hasattr(each, part.split(".")[0])
    ]
    network.load_state_dict({name: fresh.state_dict()[name] for name in silent}, strict=False)
    network.double()
    F = network(u, t, text=text)
    assert torch.equal(network(u, t, text=text.flip(0)), F)
    F.square().sum().backward()
    weights = dict(network.named_parameters())
    assert len(silent) >= 5
    assert all(float(weights[name].grad.norm()) > 1e-6 for name in silent)


@pytest.mark.parametrize("build", BUILDERS)
def test_half_precision_keeps_the_derivative(given, build):
    """bfloat16, by autocast and of the weights, to the rounding of its layers."""
    network, (x_t, t, dx_dt, text) = awake(build).float(), given
    x_t, t, dx_dt, text = (x.float() for x in (x_t, t, dx_dt, text))
    named = {"text": text, "text_mask": masked((4, 2, 0))}
    computer = TangentComputer("dual")
    _, expected = computer(Bound(network, named=named), x_t, t, dx_dt, sigma_data=0.7)
    with torch.autocast("cpu", torch.bfloat16):
        _, autocast = computer(Bound(network, named=named), x_t, t, dx_dt, sigma_data=0.7)
    bound = Bound(network.bfloat16(), named=named)
    _, half = computer(bound, x_t, t, dx_dt, sigma_data=0.7)
    for J in (autocast, half):
        error = float((J - expected).norm() / expected.norm())
        assert error < rounding(network, torch.bfloat16)


@pytest.mark.slow
def test_a_compiled_derivative_is_the_eager_one(given):
    """As one graph, in which values and tangents are pairs."""
    network, (u, t, tu, text) = awake(BUILDERS[0], num_blocks=1), given
    f = Bound(network, named={"text": text, "text_mask": masked((4, 2, 0))})
    point, method = Point(u, t, tu, t.cos() * t.sin()), DualArithmetic()
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(f, point), method(f, point), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("build", BUILDERS)
def test_texts_that_do_not_fit_are_refused(given, build):
    u, t, _, text = given
    mask = masked((4, 2, 0))
    network, plain = awake(build), build().double()
    assert (network.condition_names, plain.condition_names) == (("text", "text_mask"), ())
    with pytest.raises(ValueError, match=r"text_channels=0 got a text of shape \(3, 4, 5\)"):
        plain(u, t, text=text)
    with pytest.raises(ValueError, match="text_channels=5 got no text; set text_channels to 0"):
        network(u, t)
    with pytest.raises(ValueError, match=r"got a text of shape \(3, 4, 4\)"):
        network(u, t, text=text[..., :4])
    with pytest.raises(ValueError, match=r"got a text of shape \(3, 5\)"):
        network(u, t, text=text[:, 0])
    with pytest.raises(ValueError, match=r"boolean of shape \(3, 4\).* got torch.int64"):
        network(u, t, text=text, text_mask=mask.long())
