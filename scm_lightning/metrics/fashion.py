# SPDX-License-Identifier: Apache-2.0
"""Features of Fashion-MNIST: a small classifier whose weights ship with the package.

It was trained on the training images alone by `data/fashion_mnist/train_features.py`, which also
states its accuracy on the test images. Distances in its features are no FID.
"""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from scm_lightning.metrics.features import FeatureExtractor, Features

WEIGHTS_FILE = Path(__file__).with_name("fashion_features.safetensors")
SHAPES = ((1, 16, 16), (1, 32, 32))


class FashionClassifier(nn.Module):
    """Three convolutions and two linear layers, from 16x16 images to 64 features and 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48 * 4 * 4, 64),
            nn.Tanh(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Features:
        """Look at clothes. (B, 1, 16, 16), values in [0, 1]."""
        features = self.body(2.0 * images - 1.0)
        return Features(features, self.head(features))


class FashionFeatures(FeatureExtractor):
    """The shipped classifier of Fashion-MNIST, frozen.

    Images of 32x32 pixels are averaged over 2x2 pixels first, so their scores may stand beside
    those of 16x16, but see no finer detail.

    Raises:
        ValueError: if it is given images of another shape.
    """

    num_features = 64
    preparation = "32x32 pixels averaged to 16x16"

    def __init__(self) -> None:
        super().__init__()
        digest = hashlib.sha256(WEIGHTS_FILE.read_bytes()).hexdigest()[:12]
        self.description = f"FashionFeatures {digest}"
        self.classifier = FashionClassifier()
        self.classifier.load_state_dict(load_file(WEIGHTS_FILE))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Look at clothes. (B, 1, 16, 16) or (B, 1, 32, 32), values in [0, 1]."""
        if images.shape[1:] not in SHAPES:
            raise ValueError(
                f"FashionFeatures looks at images of shape (1, 16, 16) or (1, 32, 32), got "
                f"{tuple(images.shape[1:])}; choose an extractor made for your images"
            )
        images = images.float()
        if images.shape[1:] == SHAPES[1]:
            images = nn.functional.avg_pool2d(images, 2)
        looked: Features = self.classifier(images)
        return looked
