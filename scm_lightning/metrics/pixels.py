# SPDX-License-Identifier: Apache-2.0
"""Pixels of small images in the place of features, for images that no network here knows."""

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from scm_lightning.metrics.features import FeatureExtractor, Features


class PixelFeatures(FeatureExtractor):
    """Pixels of the image averaged over boxes to 16x16, gray ones in three equal channels.

    They see color and layout alone, not what an image shows: a shape moved by a few pixels is far
    away. Distances in them compare runs on one set of images, and nothing else.
    """

    side: ClassVar = 16
    num_features = 3 * side**2
    description = f"pixels averaged to {side}x{side}"
    only_images = True

    def forward(self, images: Tensor) -> Features:
        """Average pixels. (B, C, H, W), C of 1 or 3, values in [0, 1]."""
        small = adaptive_avg_pool2d(images.float(), self.side)
        return Features(small.expand(-1, 3, -1, -1).flatten(1), None)
