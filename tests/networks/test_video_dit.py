# SPDX-License-Identifier: Apache-2.0
"""The video transformer: coupled by its attention across frames alone; tangents; refusals."""

import copy

import pytest
import torch
from tiny import wake

from scm_lightning.autodiff.methods import DualArithmetic
from scm_lightning.autodiff.methods.base import Point
from scm_lightning.core import Bound
from scm_lightning.networks import DiT, VideoDiT

SHAPE = (2, 3, 4, 6)  # (C, F, H, W)
OPTIONS = {"model_channels": 16, "num_blocks": 2, "num_heads": 2, "num_classes": 3}


@pytest.fixture
def network():
    return wake(VideoDiT(SHAPE, **OPTIONS)).double()


@pytest.fixture
def given(randn):
    return randn(5, *SHAPE), torch.linspace(0.1, 1.4, 5).double(), torch.tensor([0, 1, 2, -1, 0])


def conditions(randn):
    """Texts of 0 to 4 tokens, and an image for each clip."""
    mask = torch.arange(4) < torch.arange(5)[:, None]
    return {"text": randn(5, 4, 5), "text_mask": mask, "image": randn(5, 1, 4, 6)}


def blocks(network):
    return [module for module in network.modules() if hasattr(module, "across")]


def test_without_attention_across_frames_every_frame_is_an_image_of_dit(network, given):
    """The weights are those of a DiT, which gives the same of every frame by itself."""
    u, t, labels = given
    coupled = network(u, t, labels)
    for block in blocks(network):
        torch.nn.init.zeros_(block.across.out.weight)
        torch.nn.init.zeros_(block.across.out.bias)
    weights = network.frames.state_dict()
    plain = DiT((2, 4, 6), **OPTIONS).double()
    plain.load_state_dict(
        {
            name.replace(".within.", "."): weight
            for name, weight in weights.items()
            if ".within." in name or not name.startswith("blocks.")
        }
    )
    frames = [plain(u[:, :, frame], t, labels) for frame in range(3)]
    torch.testing.assert_close(network(u, t, labels), torch.stack(frames, dim=2))
    assert not torch.allclose(network(u, t, labels), coupled)


def test_equal_frames_stay_equal_without_places(network, given):
    """And permuted frames give permuted frames; with places neither holds."""
    u, t, labels = given
    still = u[:, :, :1].expand(-1, -1, 3, -1, -1)
    order = torch.tensor([2, 0, 1])

    @torch.no_grad()
    def differ():
        out = network(still, t, labels)
        permuted = network(u[:, :, order], t, labels) - network(u, t, labels)[:, :, order]
        return float((out - out[:, :, :1]).abs().max()), float(permuted.abs().max())

    assert min(differ()) > 1e-3
    for block in blocks(network):
        block.places.zero_()
    assert max(differ()) < 1e-12


def test_every_frame_sees_every_other_and_no_other_clip(network, given):
    u, t, labels = given
    out = network(u, t, labels)
    for frame in range(3):
        changed = u.clone()
        changed[1, :, frame] += 1
        moved = (network(changed, t, labels) - out).abs().amax((1, 3, 4))  # (B, F)
        assert (moved[1] > 1e-4).all()
        assert moved[[0, 2, 3, 4]].max() < 1e-12


@pytest.mark.parametrize("checkpoint", [False, True])
def test_dual_numbers_agree_with_forward_mode(checkpoint, given, randn):
    """Value and derivative in float64, also where every block keeps only its input."""
    u, t, labels = given
    network = wake(VideoDiT(SHAPE, **OPTIONS, text_channels=5, image_channels=1)).double()
    assert set(network.condition_names) == {"text", "text_mask", "image"}
    f = Bound(network, labels, None, named=conditions(randn))
    point = Point(u, t, torch.cos(3 * u), t.sin() * t.cos())
    value, derivative = DualArithmetic(checkpoint)(f, point)
    expected = torch.func.jvp(f, (u, t), point.input_tangents())
    torch.testing.assert_close((value, derivative), expected)
    assert derivative.abs().amin((1, 2, 3, 4)).min() > 0


def test_added_conditions_reach_every_frame(given, randn):
    u, t, labels = given
    network = wake(VideoDiT(SHAPE, guided=True, two_times=True, **OPTIONS)).double()
    other = randn(5).abs()
    out = network(u, t, labels, other, other)
    for options in ((labels, other, 2 * other), (labels, 2 * other, other), (None, other, other)):
        moved = (network(u, t, *options) - out).abs().amax((1, 3, 4))
        assert (moved[:3] > 1e-6).all()


def test_a_clip_as_image_has_a_frame_for_each(given, randn):
    """One image for all frames is a clip of equal ones."""
    network = wake(VideoDiT(SHAPE, **OPTIONS, image_channels=1)).double()
    clip = randn(5, 1, 3, 4, 6)
    still = clip[:, :, :1].expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(network(*given, image=still), network(*given, image=clip[:, :, 0]))
    out, changed = network(*given, image=clip), clip.clone()
    assert not torch.allclose(out, network(*given, image=still))
    changed[1, :, 2] += 1
    moved = (network(*given, image=changed) - out).abs().amax((1, 2, 3, 4))
    assert moved[1] > 1e-4
    assert moved[[0, 2, 3, 4]].max() < 1e-12


def test_text_and_image_reach_every_frame_of_their_clip_alone(given, randn):
    network = wake(VideoDiT(SHAPE, **OPTIONS, text_channels=5, image_channels=1)).double()
    named = conditions(randn)
    out = network(*given, **named)
    for name in ("text", "image"):
        other = {**named, name: named[name].clone()}
        other[name][3] += randn(*other[name][3].shape)
        moved = (network(*given, **other) - out).abs().amax((1, 3, 4))
        assert (moved[3] > 1e-6).all()
        assert moved[[0, 1, 2, 4]].max() < 1e-12


def test_a_fresh_network_is_zero_and_a_copy_has_no_shared_parts(given):
    u, t, labels = given
    network = VideoDiT(SHAPE, **OPTIONS)
    network.frames.output.bias.data.zero_()
    assert not network(u.float(), t.float(), labels).any()
    assert copy.deepcopy(network).frames.output.weight is not network.frames.output.weight


def test_what_is_no_clip_is_refused(given):
    u, t, labels = given
    with pytest.raises(ValueError, match=r"takes clips \(C, F, H, W\), got .*; use DiT for images"):
        VideoDiT((2, 4, 6))
    with pytest.raises(ValueError, match=r"H and W divisible by patch_size 4, got \(2, 4, 6\)"):
        VideoDiT(SHAPE, patch_size=4)
    with pytest.raises(ValueError, match=r"this VideoDiT takes samples of shape \(2, 3, 4, 6\)"):
        VideoDiT(SHAPE, **OPTIONS)(u[:, :, :2].float(), t.float(), labels)
