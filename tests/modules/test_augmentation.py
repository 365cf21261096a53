# SPDX-License-Identifier: Apache-2.0
"""Augmentation: how often, how strongly, in which direction, and what the labels say."""

import math

import pytest
import torch
from gaussian import PATH
from tiny import loader, mlp, trainer

from scm_lightning import DiffusionModule
from scm_lightning.modules.augmentation import Augmentation, augmentation_labels, transform_images

RAMP_ERROR = 0.07
"""Pixels; of torch's bicubic kernel on a ramp, less than 0.05 along each axis."""


def parameters(num=3, **given):
    """a0 to a7 of `num` images, zero unless given: `parameters(a3=0.5)`."""
    a = torch.zeros(num, 8, dtype=torch.float64)
    for name, value in given.items():
        a[:, int(name[1])] = value
    return a


def seeded():
    return torch.Generator().manual_seed(0)


def test_how_often_and_how_strongly():
    """Of 40,000 images; the probabilities of EDM, five standard errors wide."""
    a = Augmentation().draw(torch.zeros(40_000, 1, 1, 1), seeded())
    expected = [0.5, 0.06, 0.12, 0.12, 0.06, 0.12, 0.12, 0.12]
    for share, probability in zip((a != 0).double().mean(0).tolist(), expected, strict=True):
        width = 5 * math.sqrt(probability * (1 - probability) / len(a))
        assert share == pytest.approx(probability, abs=width)
    done = [a[a[:, place] != 0, place] for place in range(8)]
    assert set(done[0].tolist()) == set(done[1].tolist()) == {1.0}
    for place in (2, 5, 6, 7):  # standard normal; at least 2,400: four standard errors
        assert float(done[place].std()) == pytest.approx(1.0, abs=0.06)
        assert float(done[place].mean()) == pytest.approx(0.0, abs=0.08)
    for place in (3, 4):  # uniform over the circle; the same
        assert float(done[place].abs().max()) <= math.pi
        assert float(done[place].std()) == pytest.approx(math.pi / math.sqrt(3), abs=0.1)
    assert torch.equal(a[:, 6] != 0, a[:, 7] != 0)
    assert (a[a[:, 4] != 0, 5] != 0).all()
    both = ((a[:, 2] != 0) & (a[:, 3] != 0)).double().mean()
    assert float(both) == pytest.approx(0.12**2, abs=0.003)  # independent; five standard errors


def test_horizontal_flips_are_half_and_alone_without_p(randn):
    """At p = 0 an image is as it was or mirrored, and its label says which."""
    x0 = randn(400, 2, 4, 6)
    x, labels = Augmentation(p=0.0)(x0, seeded())
    flipped = labels[:, 0] == 1
    assert torch.equal(x[flipped], x0[flipped].flip(-1))
    assert torch.equal(x[~flipped], x0[~flipped])
    assert not labels[:, 1:].any()
    assert 150 < int(flipped.sum()) < 250  # five standard errors


@pytest.mark.parametrize(("name", "axis"), [("a0", -1), ("a1", -2)])
def test_flips(randn, name, axis):
    """Exact, and undone by themselves."""
    x0, a = randn(3, 2, 4, 6), parameters(**{name: 1.0})
    assert torch.equal(transform_images(x0, a), x0.flip(axis))
    assert torch.equal(transform_images(transform_images(x0, a), a), x0)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_counterclockwise(randn, turns):
    x0, a = randn(3, 2, 6, 6), parameters(a3=turns * math.pi / 2)
    torch.testing.assert_close(transform_images(x0, a), x0.rot90(turns, dims=(2, 3)))


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 2), (-3, 1)])
def test_whole_pixels_move_the_content_right_and_down(randn, right, down):
    """a6 = 1 is W / 8; what enters at the border is the reflection."""
    x0 = randn(3, 2, 8, 16)
    x = transform_images(x0, parameters(a6=8 * right / 16, a7=8 * down / 8))
    reflected = torch.cat([x0.flip(-1), x0, x0.flip(-1)], dim=-1)
    reflected = torch.cat([reflected.flip(-2), reflected, reflected.flip(-2)], dim=-2)
    expected = reflected.roll((down, right), dims=(-2, -1))[..., 8:16, 16:32]
    torch.testing.assert_close(x, expected)


def ramps(height=48, width=64):
    """Pixels' places from the center: x right, y down. (1, 2, H, W)."""
    y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (height, width))
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)])[None]


def inner(x):
    """The middle, which no border reaches."""
    return x[..., 12:-12, 20:-20]


@pytest.mark.parametrize(
    ("given", "sides"),
    [
        ({"a2": 1.0}, (2**0.2, 2**0.2)),
        ({"a2": -1.5}, (2**-0.3, 2**-0.3)),
        ({"a5": 1.0}, (2**0.2, 2**-0.2)),
        ({"a5": 1.0, "a4": math.pi / 2}, (2**-0.2, 2**0.2)),
        ({"a5": -0.5, "a4": math.pi}, (2**-0.1, 2**0.1)),
        ({"a2": 1.0, "a5": 1.0}, (2**0.4, 1.0)),
    ],
)
def test_one_standard_deviation_scales_by_the_fifth_root_of_two(given, sides):
    """Pixel q shows what was at q / side; the pixels at the edge move by a whole one and more."""
    expected = ramps() / torch.tensor(sides, dtype=torch.float64)[:, None, None]
    x = transform_images(ramps(), parameters(1, **given))
    torch.testing.assert_close(inner(x), inner(expected), rtol=0, atol=RAMP_ERROR)


def test_stretching_is_along_the_axis_that_a4_turns_to():
    """Counterclockwise by a quarter of a right angle, from the right, upwards."""
    axis = torch.tensor([math.cos(math.pi / 8), -math.sin(math.pi / 8)], dtype=torch.float64)
    x = transform_images(ramps(), parameters(1, a4=math.pi / 8, a5=1.0))
    along, before = (torch.einsum("bchw,c->bhw", each, axis) for each in (x, ramps()))
    torch.testing.assert_close(inner(along), inner(before) / 2**0.2, rtol=0, atol=RAMP_ERROR)


def test_order_is_scale_turn_stretch_move():
    """Against the maps one after the other, on ramps; the last one first on the way back."""
    a = parameters(1, a2=-0.5, a3=0.7, a4=0.3, a5=0.8, a6=0.1, a7=-0.2)
    x = ramps()

    def turn(angle):
        cos, sin = math.cos(angle), math.sin(angle)
        return torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)

    def apply(matrix, x):
        return torch.einsum("dc,bchw->bdhw", matrix, x)

    stretch = torch.diag(torch.tensor([2**0.16, 2**-0.16], dtype=torch.float64))
    shift = torch.tensor([64 * 0.1 / 8, -48 * 0.2 / 8], dtype=torch.float64)
    back = x - shift[:, None, None]
    back = apply((turn(0.3) @ stretch @ turn(-0.3)).inverse(), back)
    back = apply(turn(0.7).inverse(), back) / 2**-0.1
    torch.testing.assert_close(inner(transform_images(x, a)), inner(back), rtol=0, atol=RAMP_ERROR)


def test_labels_by_hand():
    a = torch.tensor([[1.0, 1.0, 0.3, math.pi / 2, math.pi / 6, 2.0, -0.4, 0.9]])
    expected = torch.tensor([[1.0, 1.0, 0.3, -1.0, 1.0, math.sqrt(3), 1.0, -0.4, 0.9]])
    torch.testing.assert_close(augmentation_labels(a), expected)
    assert not augmentation_labels(torch.zeros(3, 8)).any()


def test_labels_say_what_was_done_and_others_stay(randn):
    """Images with zero labels are untouched to the bit, all others are not."""
    x0 = randn(300, 2, 8, 8).float()
    x, labels = Augmentation()(x0, seeded())
    assert x.shape == x0.shape
    assert x.dtype == labels.dtype == torch.float32
    assert labels.shape == (300, 9)
    untouched = (x == x0).all(dim=(1, 2, 3))
    assert torch.equal(untouched, ~labels.any(dim=1))
    assert 60 < int(untouched.sum()) < 120  # 0.5 * 0.94 * 0.88^4 = 0.28


def test_random_numbers_come_from_the_generator_or_the_global_state(randn):
    x0 = randn(40, 1, 4, 4)
    augmentation = Augmentation()
    first, again = augmentation(x0, seeded())[0], augmentation(x0, seeded())[0]
    assert torch.equal(first, again)
    torch.manual_seed(0)
    assert torch.equal(augmentation(x0)[0], first)
    assert not torch.equal(augmentation(x0)[0], first)


def test_misfits_are_refused(randn):
    with pytest.raises(ValueError, match=r"p must be a probability from 0 to 1, got 1\.2"):
        Augmentation(p=1.2)
    with pytest.raises(ValueError, match=r"takes images \(B, C, H, W\), got samples of shape"):
        Augmentation()(randn(5, 3))


def test_a_network_that_is_told_of_no_augmentation_is_refused():
    module = DiffusionModule(mlp(), path=PATH, augmentation=Augmentation())
    with pytest.raises(ValueError, match=r"told of it, got MLP, whose forward takes no augment"):
        trainer(1).fit(module, loader())
