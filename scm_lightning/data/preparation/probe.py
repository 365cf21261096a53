# SPDX-License-Identifier: Apache-2.0
"""A look at a few images of a source before the work: can they be used, and what do they become?"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from scm_lightning.data.preparation.transform import ImageTransform
from scm_lightning.data.shards import Array
from scm_lightning.data.sources.source import ImageSource, UnreadableImageError

NUM_LOOKED_AT = 16


def fit_transform(
    source: ImageSource, transform: ImageTransform
) -> tuple[ImageTransform, tuple[int, ...]]:
    """Look at images that are spread over a source.

    Args:
        source: the images.
        transform: what is made of them.

    Returns:
        The transform, whose channels are now given if they were not: 1 if all that were looked at
        are grey, else 3; and the shape that it makes, (C, H, W).

    Raises:
        ValueError: if none of the images can be used, or they get different shapes.
    """
    if not source.items:
        raise ValueError(f"{source.description} must hold images, got none; correct the path")
    reasons: list[str] = []
    shapes = {image.shape for image in _looked_at(source, transform, reasons)}
    if not shapes:
        raise ValueError(
            f"the images of {source.description} cannot be used, of {len(reasons)} that were looked"
            f" at none: {reasons[0]}"
        )
    sides = {shape[1:] for shape in shapes}
    if len(sides) > 1:
        found = ", ".join(f"{height}x{width}" for height, width in sorted(sides)[:3])
        raise ValueError(
            f"without a size all images of {source.description} must have the same, got {found}; "
            "give a size"
        )
    channels = max(shape[0] for shape in shapes)
    return replace(transform, channels=channels), (channels, *sides.pop())


def _looked_at(
    source: ImageSource, transform: ImageTransform, reasons: list[str]
) -> Iterator[Array]:
    """Some images as they are stored; the reasons why others are not go into the list."""
    last = len(source.items) - 1
    for number in np.unique(np.linspace(0, last, NUM_LOOKED_AT).round().astype(int)).tolist():
        try:
            yield transform(source.load(number))
        except UnreadableImageError as error:
            reasons.append(f"{source.items[number].name}: {error}")
