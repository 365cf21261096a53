# SPDX-License-Identifier: Apache-2.0
"""Feature extractors, the exchangeable part of a distance between image sets."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scm_lightning.metrics.frechet import Statistics

INCEPTION_DISTANCE = "FID"
"""Name of the Frechet distance in Inception's features, and of no other."""


class Features(NamedTuple):
    """Output of an extractor for a batch of images.

    Attributes:
        features: (B, num_features), float.
        logits: class scores, (B, num_classes), or None if the extractor does not classify.
    """

    features: Tensor
    logits: Tensor | None

    def where_finite(self, x: Tensor) -> "Features":
        """The same in float32, NaN for samples that are not finite: bytes could not show it.

        Args:
            x: the samples. (B, ...).
        """
        finite = x.flatten(1).isfinite().all(1, keepdim=True).to(self.features.device)
        logits = None if self.logits is None else self.logits.float().where(finite, torch.nan)
        return Features(self.features.float().where(finite, torch.nan), logits)


class FeatureExtractor(nn.Module, ABC):
    """A frozen network from images to features.

    Attributes:
        num_features: length of a feature vector.
        description: name and version, written beside every number that it gives. It must change
            when the weights do: features of the reference are kept under it.
        distance_name: what the Frechet distance in these features may be called.
        preparation: what it does to an image before it looks, in words.
        only_images: whether it takes only gray and color images; other data then get no scores.
        batch_size: images looked at together; all at once, activations would fill the memory.
    """

    num_features: int
    description: str
    distance_name: str = "FD"
    preparation: str = "images as they are"
    only_images: bool = False
    batch_size: int = 1000

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Extract features. (B, C, H, W), values in [0, 1]."""

    @property
    def distance_key(self) -> str:
        """The name of the distance as a key of `metrics.json`: `fid`, `fd_dinov2`, `fd`."""
        return next(iter(self.distances))

    @property
    def distances(self) -> dict[str, str]:
        """Keys of the distances, and how their columns are headed; the first one decides."""
        return {self.distance_name.lower().replace("-", "_"): self.distance_name}

    def views(self, features: Statistics) -> dict[str, Statistics]:
        """Statistics that each of `distances` is taken of, from those of a set of features."""
        return {self.distance_key: features}

    @property
    def is_inception(self) -> bool:
        """Tell whether the logits are Inception's, for its score, and not of the data's classes."""
        return self.distance_name == INCEPTION_DISTANCE
