# SPDX-License-Identifier: Apache-2.0
"""Mirrored images beside conditions: which conditions are mirrored with them."""

from scm_lightning.data.index import ShardIndex


def flipped_names(index: ShardIndex) -> list[str]:
    """Names of the conditions that are mirrored with an image: maps and pictures of its size.

    Those that have no rows and columns, such as numbers and the tokens of a text, stay as they are.

    Raises:
        ValueError: if it cannot be known of one whether it is to be mirrored.
    """
    size, names = index.shape[-2:], []
    for name, condition in index.conditions.items():
        of_that_size = condition.shape[-2:] == size
        if condition.varying or not (of_that_size or len(condition.shape) > 2):
            continue
        if not of_that_size or len(condition.shape) < 3:
            raise ValueError(
                f"horizontal_flip mirrors a condition with the images if it is of their size, "
                f"(C, {size[0]}, {size[1]}), which cannot be known of {name} of shape "
                f"{condition.shape}; leave horizontal_flip out, or {name} out of conditions"
            )
        names.append(name)
    return names


def check_flips(index: ShardIndex) -> None:
    """Refuse to mirror what cannot be mirrored.

    Raises:
        ValueError: if the data are no images or videos, or there is a condition of which it
            cannot be known.
    """
    if index.latents is not None or len(index.shape) not in (3, 4):
        raise ValueError(
            "horizontal_flip needs images: the mirror image of a latent is another one's; "
            "prepare the latents of mirrored images, or leave it out"
        )
    flipped_names(index)
