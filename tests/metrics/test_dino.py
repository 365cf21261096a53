# SPDX-License-Identifier: Apache-2.0
"""DINOv2's transformer against torch's own layers, and its features of prepared images."""

import math

import pytest
import torch
from torch import nn

from scm_lightning.metrics import DINOv2Features, Reference, SampleScores, TrainingData, dino
from scm_lightning.metrics.vision_transformer import GRID, PATCH, Block, VisionTransformer

CHANNELS, DEPTH = 128, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.requires_grad_(False)


def test_a_block_is_torchs_encoder_layer(randn):
    """Its scales go into the last layer of each branch; heads of 64 channels, in float64."""
    block = random(Block(CHANNELS)).double()
    layer = nn.TransformerEncoderLayer(
        CHANNELS,
        CHANNELS // 64,
        4 * CHANNELS,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=True,
        dtype=torch.float64,
    ).requires_grad_(False)
    pairs = {
        layer.self_attn.in_proj_weight: block.attn.qkv.weight,
        layer.self_attn.in_proj_bias: block.attn.qkv.bias,
        layer.self_attn.out_proj.weight: block.ls1.gamma[:, None] * block.attn.proj.weight,
        layer.self_attn.out_proj.bias: block.ls1.gamma * block.attn.proj.bias,
        layer.linear1.weight: block.mlp.fc1.weight,
        layer.linear1.bias: block.mlp.fc1.bias,
        layer.linear2.weight: block.ls2.gamma[:, None] * block.mlp.fc2.weight,
        layer.linear2.bias: block.ls2.gamma * block.mlp.fc2.bias,
    }
    for one, other in ((layer.norm1, block.norm1), (layer.norm2, block.norm2)):
        pairs |= {one.weight: other.weight, one.bias: other.bias}
    for theirs, ours in pairs.items():
        theirs.copy_(ours)
    tokens = randn(3, 7, CHANNELS)
    torch.testing.assert_close(block(tokens), layer(tokens), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "millions"), [("s", 22.056576), ("b", 86.580480), ("l", 304.368640)]
)
def test_sizes_are_those_published(size, millions):
    """Numbers of parameters as the published files have them."""
    with torch.device("meta"):
        network = VisionTransformer(*dino.SIZES[size])
    assert sum(each.numel() for each in network.parameters()) / 1e6 == millions


def test_positions_of_a_linear_ramp(randn):
    """Bicubic interpolation nearly keeps a ramp: token k is at (k + 0.5) 37 / 16.1 - 0.5.

    At 37 / 16 the last would be 0.19 away, four times as much as the interpolation errs: by 0.048,
    which is the kernel's and not a matter of rounding.
    """
    network = VisionTransformer(64, 1)
    ramp = torch.arange(float(GRID)).expand(GRID, GRID)  # along the columns
    with torch.no_grad():
        network.pos_embed[0, 1:, 0] = ramp.flatten()
        network.pos_embed[0, 1:, 1] = ramp.T.flatten()
        found = network._positions(16 * PATCH, 16 * PATCH)[0, 1:].unflatten(0, (16, 16))
    expected = (torch.arange(16) + 0.5) * GRID / 16.1 - 0.5
    inner = slice(2, 14)
    torch.testing.assert_close(found[5, inner, 0], expected[inner], rtol=0, atol=0.05)
    torch.testing.assert_close(found[inner, 5, 1], expected[inner], rtol=0, atol=0.05)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file of a small stand-in for the smallest size."""
    monkeypatch.setitem(dino.SIZES, "s", (CHANNELS, DEPTH))
    network = random(VisionTransformer(CHANNELS, DEPTH))
    torch.save(network.state_dict(), tmp_path / "s.pth")
    return tmp_path / "s.pth"


def test_features_of_normalized_bytes(weights, randn):
    """Images of the size that torch-fidelity resizes to, so that it changes none."""
    images = randn(2, 3, 16, 16).sigmoid().float()
    images = images.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    features = DINOv2Features("dinov2-vit-s-14", str(weights))(images).features
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    network = VisionTransformer(CHANNELS, DEPTH)
    network.load_state_dict(torch.load(weights))
    expected = network(((255 * images).round() / 255 - mean) / std)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert float(features.std(0).mean()) > 1e-3  # the two images differ


def test_its_distance_has_a_name_of_its_own(weights, randn):
    """Never FID, neither as a key nor in words; and no inception score."""
    data = randn(12, 1, 8, 8).sigmoid().float()
    content = TrainingData(lambda: [data], lambda x: x, 12, data.nbytes, 0.7)
    extractor = DINOv2Features("dinov2-vit-s-14", str(weights))
    reference = Reference(extractor, content, torch.device("cpu"))
    drawn = SampleScores(reference, block_size=3, kid=True, precision_recall=True, nearest=True)
    drawn.update(torch.arange(5), data[:5].flip(3), torch.arange(5))
    found = drawn.compute()
    kinds = {"fd_dinov2", "fd_dinov2_block", "kid", "kid_std", "precision", "recall", "nearest"}
    assert found.keys() == kinds
    assert all(math.isfinite(score.value) for score in found.values())
    assert "dinov2-vit-s-14, weights" in extractor.description


def test_only_known_sizes_are_taken():
    with pytest.raises(ValueError, match=r"of dinov2-vit-s-14, .* got 'dinov2-vit-g-14'"):
        DINOv2Features("dinov2-vit-g-14")
