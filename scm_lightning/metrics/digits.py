# SPDX-License-Identifier: Apache-2.0
"""Features of handwritten digits; see `classifier.py`."""

from scm_lightning.metrics.classifier import ShippedFeatures, SmallClassifier


def digit_classifier() -> SmallClassifier:
    """A classifier of images of 8x8 pixels, with random weights."""
    return SmallClassifier((32, 64, 64), (1, 2, 1), DigitFeatures.num_features)


class DigitFeatures(ShippedFeatures):
    """The shipped classifier of digits, frozen."""

    num_features = 32
    sides = (8,)

    def __init__(self) -> None:
        super().__init__(digit_classifier(), "digit_features.safetensors")
