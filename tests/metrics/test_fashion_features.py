# SPDX-License-Identifier: Apache-2.0
"""Features of Fashion-MNIST on drawn shapes: no data set is needed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scm_lightning import metrics
from scm_lightning.metrics import FashionFeatures, Reference, TrainingData

TROUSERS = """
..####.. ..####.. ..####.. ..#..#.. ..#..#.. ..#..#.. ..#..#.. ..#..#.."""
SANDAL = """
........ ........ ........ ......#. .....##. ..##.##. #######. ........"""
BOOT = """
....###. ....###. ....###. ...####. .######. ######## ######## ####..##"""


def drawn(rows: str) -> Tensor:
    """An image of 16x16 pixels from eight rows of eight: `#` bright, `.` black. (1, 16, 16)."""
    pixels = np.array([[0.7 * (mark == "#") for mark in row] for row in rows.split()])
    return torch.tensor(pixels).repeat_interleave(2, 0).repeat_interleave(2, 1).float()[None]


def test_shipped_classifier_knows_drawn_clothes():
    """Labels of the data set: 1 trousers, 5 sandal, 9 ankle boot."""
    images = torch.stack([drawn(rows) for rows in (TROUSERS, SANDAL, BOOT)])
    looked = FashionFeatures()(images)
    assert looked.features.shape == (3, 64)
    assert looked.logits.argmax(1).tolist() == [1, 5, 9]


def test_32_pixels_are_averaged_to_16(randn):
    """Doubled pixels look the same, and so does a pattern that four pixels average away."""
    images = 0.3 + 0.4 * randn(3, 1, 16, 16).sigmoid().float()
    doubled = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    pattern = 0.2 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 16)
    features = FashionFeatures()
    for large in (doubled, doubled + pattern):
        torch.testing.assert_close(features(large), features(images))


def test_weights_are_small_and_frozen():
    file = Path(metrics.__file__).with_name("fashion_features.safetensors")
    assert file.stat().st_size < 300_000
    assert not any(parameter.requires_grad for parameter in FashionFeatures().parameters())


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 28, 28)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(1, 16, 16\) or \(1, 32, 32\), got \(") as caught:
        FashionFeatures()(torch.zeros(2, *shape))
    assert str(shape) in str(caught.value)


def test_images_are_looked_at_in_parts(randn):
    """More than a batch of the extractor: no part is left out, and the order is kept."""
    extractor = FashionFeatures()
    images = randn(extractor.batch_size + 7, 1, 16, 16).sigmoid().float()
    data = TrainingData(lambda: [images], lambda x: x, len(images), images.nbytes, 0.7)
    reference = Reference(extractor, data, torch.device("cpu"))
    looked = reference.look(images)
    assert len(looked.features) == len(looked.logits) == len(images)
    torch.testing.assert_close(looked.features[-7:], extractor(images[-7:]).features)
    assert reference.statistics.num_samples == len(images)
