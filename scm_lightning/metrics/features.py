# SPDX-License-Identifier: Apache-2.0
"""What a distance between image sets looks at: a feature extractor, pluggable."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """What an extractor says of a batch of images.

    Attributes:
        features: (B, num_features), float.
        logits: class scores, (B, num_classes), or None if the extractor does not classify.
    """

    features: Tensor
    logits: Tensor | None


class FeatureExtractor(nn.Module, ABC):
    """A frozen network from images to features.

    Attributes:
        num_features: length of a feature vector.
        description: name and version, written beside every number that it gives.
    """

    num_features: int
    description: str

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Look at images. (B, C, H, W), values in [0, 1]."""
