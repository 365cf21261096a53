# SPDX-License-Identifier: Apache-2.0
"""Features of handwritten digits, at rest and moving; see `classifier.py`."""

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


def moving_digit_classifier() -> SmallClassifier:
    """A classifier of frames of 16x16 pixels, with random weights."""
    return SmallClassifier((24, 32, 48, 64), (1, 2, 2, 1), MovingDigitFeatures.num_features)


class MovingDigitFeatures(ShippedFeatures):
    """The shipped classifier of single frames of moving digits, frozen.

    Its features also tell the place of the digit, which it was trained to tell beside the class:
    motion could not be seen in features that only know what a digit is.
    """

    num_features = 32
    sides = (16,)

    def __init__(self) -> None:
        super().__init__(moving_digit_classifier(), "moving_digit_features.safetensors")
