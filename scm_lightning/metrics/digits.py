# SPDX-License-Identifier: Apache-2.0
"""Features of handwritten digits: a small classifier whose weights ship with the package.

It was trained on the training split of the digits alone by `data/digits/train_features.py`, which
also states its accuracy on the held-out digits. Distances in its features are no FID.
"""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from scm_lightning.metrics.features import FeatureExtractor, Features

WEIGHTS_FILE = Path(__file__).with_name("digit_features.safetensors")


class DigitClassifier(nn.Module):
    """Three convolutions and two linear layers, from 8x8 images to 32 features and 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 32),
            nn.Tanh(),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Features:
        """Look at digits. (B, 1, 8, 8), values in [0, 1]."""
        features = self.body(2.0 * images - 1.0)
        return Features(features, self.head(features))


class DigitFeatures(FeatureExtractor):
    """The shipped classifier of digits, frozen.

    Raises:
        ValueError: if it is given anything but digits.
    """

    num_features = 32

    def __init__(self) -> None:
        super().__init__()
        digest = hashlib.sha256(WEIGHTS_FILE.read_bytes()).hexdigest()[:12]
        self.description = f"DigitFeatures {digest}"
        self.classifier = DigitClassifier()
        self.classifier.load_state_dict(load_file(WEIGHTS_FILE))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Look at digits. (B, 1, 8, 8), values in [0, 1]."""
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(
                f"DigitFeatures looks at images of shape (1, 8, 8), got {tuple(images.shape[1:])}; "
                "choose an extractor made for your images"
            )
        looked: Features = self.classifier(images.float())
        return looked
