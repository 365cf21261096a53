# SPDX-License-Identifier: Apache-2.0
"""Features of Fashion-MNIST; see `classifier.py`."""

from scm_lightning.metrics.classifier import ShippedFeatures, SmallClassifier


def fashion_classifier() -> SmallClassifier:
    """A classifier of images of 16x16 pixels, with random weights."""
    return SmallClassifier((24, 32, 48), (1, 2, 2), FashionFeatures.num_features)


class FashionFeatures(ShippedFeatures):
    """The shipped classifier of Fashion-MNIST, frozen.

    Images of 32x32 pixels are averaged over 2x2 pixels first, so their scores may stand beside
    those of 16x16, but see no finer detail.
    """

    num_features = 64
    preparation = "32x32 pixels averaged to 16x16"
    sides = (16, 32)

    def __init__(self) -> None:
        super().__init__(fashion_classifier(), "fashion_features.safetensors")
