# SPDX-License-Identifier: Apache-2.0
"""Pixels in the place of features."""

import torch

from scm_lightning.metrics import PixelFeatures


def test_boxes_of_pixels_are_averaged():
    """Equal 2x2 boxes of a 32x32 image: their means; a gray image is three equal channels."""
    small = torch.rand(2, 3, 16, 16)
    boxes = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    noise = torch.tensor([[0.1, -0.1], [-0.2, 0.2]]).repeat(16, 16)  # of mean 0 in every box
    looked = PixelFeatures()(boxes + noise).features
    torch.testing.assert_close(looked, small.flatten(1))
    gray = PixelFeatures()(boxes[:, :1]).features
    torch.testing.assert_close(gray.view(2, 3, 256), small[:, :1].flatten(2).expand(-1, 3, -1))
