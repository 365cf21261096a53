# SPDX-License-Identifier: Apache-2.0
"""A look at a few images of a source before the work: can they be used, and what do they become?"""

from dataclasses import replace

import numpy as np

from scm_lightning.preparation.sources.decoding import UnreadableImageError
from scm_lightning.preparation.sources.source import ImageSource
from scm_lightning.preparation.transform import ImageTransform

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
    shapes, reason = set[tuple[int, ...]](), ""
    numbers = np.linspace(0, len(source.items) - 1, NUM_LOOKED_AT).round().astype(int)
    for number in np.unique(numbers).tolist():
        try:
            shapes.add(transform(source.load(number)).shape)
        except UnreadableImageError as error:
            reason = reason or f"{source.items[number].name}: {error}"
    if not shapes:
        raise ValueError(
            f"the images of {source.description} cannot be used, none of the "
            f"{len(np.unique(numbers))} tried: {reason}"
        )
    sides = {shape[1:] for shape in shapes}
    if len(sides) > 1:
        found = ", ".join("x".join(map(str, each)) for each in sorted(sides)[:3])
        raise ValueError(
            f"without a size all images of {source.description} must have the same, got {found}; "
            "give a size"
        )
    channels = max(shape[0] for shape in shapes)
    return replace(transform, channels=channels), (channels, *sides.pop())
