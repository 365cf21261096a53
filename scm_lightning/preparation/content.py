# SPDX-License-Identifier: Apache-2.0
r"""Content of a shard: an image's pixels, or what an encoder makes of them.

The engine of `scm prepare` (`engine.py`) hands every batch of images that its workers have
loaded to one `ShardContent`, in the main process and in a fixed order, and asks it for

    stored  = encode(images)                    what is written, one array per image
    moments = (sum of x, sum of x^2)            per channel, over samples and positions

where x are the data that a network is trained on. They are added up over the training split:

    mean = sum / num     std = sqrt(sum of squares / num - mean^2)

The batches are those of the plan, whatever the number of workers and however often the work was
interrupted, so an encoder whose result depends on its batch still gives equal shards.
Axes: N images, C channels, H and W pixels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scm_lightning.data.index import Latents
from scm_lightning.data.shards import Array

BATCH_BYTES = 2**23
"""Size of the images that a worker hands over at once; more would only fill the memory."""
MAX_BATCH = 256


class Moments(NamedTuple):
    """Sums over the samples of some training data, exact or in float64.

    Attributes:
        num: numbers per channel: samples times positions.
        sums: sum of x per channel. C numbers.
        squares: sum of x^2 per channel. C numbers.
    """

    num: int
    sums: list[float]
    squares: list[float]


def merged(moments: Sequence[Moments]) -> Moments:
    """Sums over all, correctly rounded and so the same in any order."""
    sums, squares = (
        [math.fsum(channel) for channel in zip(*parts, strict=True)]
        for parts in ([each.sums for each in moments], [each.squares for each in moments])
    )
    return Moments(sum(each.num for each in moments), sums, squares)


class ShardContent(ABC):
    """Content stored for an image. Lives in the main process, and need not be picklable.

    Attributes:
        shape: shape of one sample as data, (C, H, W): that of the index.
        stored_shape: shape of one array that `encode` returns.
        dtype: type of the stored arrays, as the index names it: "uint8", "float32" or "float16".
        batch_size: images per call of `encode`, at most; unreadable ones are left out.
        latents: what the index says of an encoder; None for pixels.
        settings: everything besides source and transform that the stored numbers depend on (name
            and checksum of an encoder's weights, what is stored, its device and precision), as
            values of JSON. A folder that was begun with other settings is refused, and the message
            names the ones that differ.
    """

    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    dtype: str
    batch_size: int
    latents: Latents | None
    settings: Mapping[str, Any]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of the images that `encode` takes. (C, H, W)."""
        return self.shape if self.latents is None else self.latents.image_shape

    @abstractmethod
    def encode(self, images: Array) -> Array:
        """Make the stored arrays. (N, C, H, W) uint8 pixels to (N, *stored_shape) `dtype`."""

    @abstractmethod
    def moments(self, stored: Array) -> Moments:
        """Sums of the data that a network will see. (N, *stored_shape) to C and C numbers.

        With means m and deviations s stored, x = m + s e has the sums of m and of m^2 + s^2.
        """


class Pixels(ShardContent):
    """The images themselves, eight bits per channel.

    Args:
        shape: shape of one image, (C, H, W).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = self.stored_shape = shape
        self.dtype = "uint8"
        self.batch_size = max(1, min(MAX_BATCH, BATCH_BYTES // int(np.prod(shape))))
        self.latents = None
        self.settings = {}

    def encode(self, images: Array) -> Array:
        """Hand the images on. (N, C, H, W) uint8."""
        return images

    def moments(self, stored: Array) -> Moments:
        """Exact sums of whole numbers. (N, C, H, W) uint8."""
        pixels = stored.astype(np.int64).swapaxes(0, 1).reshape(stored.shape[1], -1)
        sums, squares = pixels.sum(axis=1), (pixels * pixels).sum(axis=1)
        return Moments(pixels.shape[1], sums.tolist(), squares.tolist())
