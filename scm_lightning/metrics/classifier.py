# SPDX-License-Identifier: Apache-2.0
"""Small classifiers of gray images whose weights ship with the package, as feature extractors.

They were trained on the training splits alone by `data/train_features.py`, which also states their
accuracies on the held-out images. Distances in their features are not FIDs.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from scm_lightning.metrics.features import FeatureExtractor, Features


class SmallClassifier(nn.Module):
    """Convolutions and two linear layers, from gray images to features and 10 classes.

    Args:
        channels: of each convolution.
        strides: of each convolution; 4x4 pixels must be left.
        num_features: length of a feature vector.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in zip((1, *channels), channels, strides, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(channels[-1] * 4 * 4, num_features), nn.Tanh()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(num_features, 10)

    def forward(self, images: Tensor) -> Features:
        """Extract features. (B, 1, H, W), values in [0, 1]."""
        features = self.body(2.0 * images - 1.0)
        return Features(features, self.head(features))


class ShippedFeatures(FeatureExtractor):
    """A shipped classifier, frozen.

    Args:
        classifier: the classifier.
        weights: file of its weights, in this folder.

    Attributes:
        sides: sides of the square images that it looks at; all but the first are averaged to that.
    """

    only_images = True
    sides: tuple[int, ...]

    @abstractmethod
    def __init__(self, classifier: SmallClassifier, weights: str) -> None:
        super().__init__()
        file = Path(__file__).with_name(weights)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        self.description = f"{type(self).__name__} {digest}"
        self.classifier = classifier
        self.classifier.load_state_dict(load_file(file))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Extract features. (B, 1, side, side), values in [0, 1].

        Raises:
            ValueError: if they are of another shape.
        """
        shapes = [(1, side, side) for side in self.sides]
        if images.shape[1:] not in shapes:
            raise ValueError(
                f"{type(self).__name__} looks at images of shape {' or '.join(map(str, shapes))}, "
                f"got {tuple(images.shape[1:])}; choose an extractor made for your images"
            )
        looked: Features = self.classifier(
            avg_pool2d(images.float(), images.shape[-1] // self.sides[0])
        )
        return looked
