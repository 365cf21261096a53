# SPDX-License-Identifier: Apache-2.0
r"""Transform of an image of any size to a sample.

    center    the central square, resized by Lanczos (as for EDM's data sets)
    adm       halved by means of 2x2 while the short side is twice the size or more, then bicubic
              to short side = size, then the central square (as for ADM's and EDM's ImageNet)
    none      must be of the size already
    alpha     p = round((c a + b (255 - a)) / 255)     over the background b
    grey      p = 0.299 R + 0.587 G + 0.114 B

All resizing is antialiased: the filters grow with the factor, so that what the smaller image
cannot show is taken out. Pillow resizes along x, rounds, and resizes along y. Alpha is composed
before, else the colors below transparent pixels would bleed into the edges. An odd margin leaves
one pixel more below and on the right.

Axes: H and W pixels, C channels; last in what comes in, first in what goes out.
Source: P. Dhariwal, A. Nichol, arXiv 2105.05233; Karras et al., arXiv 2206.00364, data preparation.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from scm_lightning.data.shards import Array
from scm_lightning.preparation.sources.decoding import UnreadableImageError

CROPS = ("center", "adm", "none")
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class ImageTransform:
    """Transform of images to samples of one shape.

    Args:
        size: side of the samples. Pixels. None leaves images as they are, which then must all be
            of one size.
        crop: `center`, `adm` or `none`, above. Without a size nothing is cropped.
        channels: 1 for grey, 3 for color, None as the image has: 1 if it is grey, else 3.
        background: what transparent pixels show. Red, green, blue from 0 to 255.
        upscale: whether images whose short side is below the size are enlarged. They are refused
            by default, because a model learns their blur.

    Raises:
        ValueError: if an argument is out of range.
    """

    size: int | None = None
    crop: str = "center"
    channels: int | None = None
    background: tuple[int, int, int] = WHITE
    upscale: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}; or leave it out")
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {self.crop}; choose one")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}; or leave them out")
        if len(self.background) != 3 or not all(0 <= each <= 255 for each in self.background):
            raise ValueError(
                f"background must be three numbers from 0 to 255, got {self.background}; white is "
                f"{WHITE}"
            )

    def __call__(self, image: Array) -> Array:
        """Make a sample.

        Args:
            image: (H, W, C) uint8, C in {1, 3, 4}.

        Returns:
            (C, H, W) uint8, C in {1, 3}.

        Raises:
            UnreadableImageError: if the image is too small, or not of the size without a crop.
        """
        assert image.dtype == np.uint8, image.dtype
        assert image.ndim == 3, image.shape
        assert image.shape[2] in (1, 3, 4), image.shape
        if self.size is not None:
            self._check(image.shape[0], image.shape[1], self.size)
            if self.crop == "center":
                image = _central(image, min(image.shape[:2]))
        if image.shape[2] == 4:
            image = compose(image, self.background)
        if self.size is not None:
            image = self._resize(image, self.size)
        return np.ascontiguousarray(_convert(image, self.channels).transpose(2, 0, 1))

    def _check(self, height: int, width: int, size: int) -> None:
        """Refuse images that cannot be brought to the size."""
        if self.crop == "none" and (height, width) != (size, size):
            raise UnreadableImageError(
                f"it must have {size}x{size} pixels, got {width}x{height}; choose a crop"
            )
        if min(height, width) < size and not self.upscale:
            raise UnreadableImageError(
                f"its short side must have {size} pixels or more, got {width}x{height}; prepare a "
                "smaller size, or set upscale"
            )

    def _resize(self, image: Array, size: int) -> Array:
        """Bring an image without alpha to the size. (H, W, C) to (size, size, C)."""
        if self.crop != "adm":
            return _resample(image, size, size, Image.Resampling.LANCZOS)
        height, width = image.shape[:2]
        while min(height, width) >= 2 * size:
            height, width = height // 2, width // 2
            image = _resample(image, height, width, Image.Resampling.BOX)
        scale = size / min(height, width)
        height, width = round(height * scale), round(width * scale)
        return _central(_resample(image, height, width, Image.Resampling.BICUBIC), size)


@dataclass(frozen=True)
class ClipTransform(ImageTransform):
    """Transform of the frames of a clip, one by one, to a sample of one shape."""

    def __call__(self, image: Array) -> Array:
        """Make a sample. (F, H, W, C) uint8 to (C, F, H, W) uint8; see `ImageTransform`."""
        transform = super().__call__
        return np.stack([transform(frame) for frame in image], axis=1)


def compose(image: Array, background: tuple[int, int, int]) -> Array:
    """Lay an image with alpha over a color. (H, W, 4) to (H, W, 3), uint8."""
    alpha = image[:, :, 3:].astype(np.uint32)
    over = np.array(background, np.uint32) * (255 - alpha)
    return ((image[:, :, :3] * alpha + over + 127) // 255).astype(np.uint8)


def _central(image: Array, side: int) -> Array:
    """The central square of an image. (H, W, C) to (side, side, C)."""
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _resample(image: Array, height: int, width: int, method: Image.Resampling) -> Array:
    """Resize by one of Pillow's antialiased filters. (H, W, C) to (height, width, C)."""
    if image.shape[:2] == (height, width):
        return image
    squeezed = image[:, :, 0] if image.shape[2] == 1 else image
    resized = Image.fromarray(np.ascontiguousarray(squeezed)).resize((width, height), method)
    return np.asarray(resized).reshape(height, width, -1)


def _convert(image: Array, channels: int | None) -> Array:
    """Bring an image of 1 or 3 channels to the wanted number."""
    if channels is None or channels == image.shape[2]:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    return np.asarray(grey)[:, :, None]
