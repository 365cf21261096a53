# SPDX-License-Identifier: Apache-2.0
r"""Decoding of the bytes of an image file to pixels, without trust in the bytes.

    16 bits grey      p = round(v 255 / 65535)
    16 bits colour    the upper byte; Pillow reads no more
    CMYK              p = (255 - K) (255 - ink) / 255    for cyan, magenta, yellow
    palette           its colors
    transparency      as alpha, whatever way the file tells it

Only the six formats below are tried: Pillow knows some that start other programs. An image of
more pixels than `PIL.Image.MAX_IMAGE_PIXELS` (89 million) is refused before it is decoded, as a
small file may claim to be a huge image. Cut images are refused, never filled up. An animation is
its first frame, but where clips are asked for. The orientation that a camera noted is applied.
"""

import io
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from scm_lightning.data.shards import Array

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_FILE_BYTES = 1 << 28
"""Largest file: so much has to be kept in memory."""


class UnreadableImageError(ValueError):
    """An image that is damaged, dangerous or of no use; names the image and says why."""


def is_image_name(name: str) -> bool:
    """Tell whether a file's name ends like an image's."""
    return name.lower().endswith(SUFFIXES)


def decode_image(content: bytes, name: str) -> Array:
    """Decode an image file.

    Args:
        content: of the file.
        name: what to call it in errors.

    Returns:
        The image. (H, W, C) uint8, C in {1, 3, 4}.

    Raises:
        UnreadableImageError: if it is not a whole image of a known format, or is too large.
    """
    image: Array = decode_frames(content, name, 1)[0]
    return image


def decode_frames(content: bytes, name: str, num_frames: int) -> Array:
    """Decode the first frames of an animated image file.

    Args:
        content: of the file.
        name: what to call it in errors.
        num_frames: frames F.

    Returns:
        The frames. (F, H, W, C) uint8, C in {1, 3, 4}.

    Raises:
        UnreadableImageError: as `decode_image`, or if it has fewer frames.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # thousands of photographs have damaged EXIF data
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if num_frames > 1 and num_frames > (found := _num_frames(image)):
                    raise ValueError(f"it must have {num_frames} frames, got {found}")
                frames = [_frame(image, number) for number in range(num_frames)]
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"{name} cannot be read: its content is not an image of a known format"
        ) from error
    # Whatever a decoder makes of damaged bytes: Pillow's raise about a dozen kinds of error.
    except Exception as error:
        raise UnreadableImageError(f"{name} cannot be read: {error or repr(error)}") from error
    return stacked(frames, name)


def stacked(frames: Sequence[Array], name: str) -> Array:
    """Stack frames, in color or with alpha if one of them is.

    Args:
        frames: (H, W, C) uint8 each, C in {1, 3, 4}.
        name: of the clip, for errors.

    Raises:
        UnreadableImageError: if they have different sizes.
    """
    sizes = [frame.shape[:2] for frame in frames]
    if len(set(sizes)) > 1:
        raise UnreadableImageError(f"{name} must have frames of one size, got {sorted(set(sizes))}")
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    most = max(frame.shape[2] for frame in frames)
    alike = (
        frame
        if frame.shape[2] == most
        else np.asarray(Image.fromarray(frame.squeeze()).convert(modes[most]))
        for frame in frames
    )
    return np.stack([*alike])


def is_animated(content: bytes) -> bool:
    """Tell whether a file holds several frames; False if it cannot be read."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _num_frames(image) > 1
    except Exception:  # which it is said of when it is decoded
        return False


def _num_frames(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1)  # only formats with animations have it


def _frame(image: Image.Image, number: int) -> Array:
    if number:
        image.seek(number)
    image.load()
    return _pixels(ImageOps.exif_transpose(image))


def _pixels(image: Image.Image) -> Array:
    """Pixels of a decoded image in one of the three forms. (H, W, C) uint8."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its whole numbers do not fit into 16 bits")
        return ((values * 255 + 32767) // 65535).astype(np.uint8)[:, :, None]
    if image.mode == "F":
        raise ValueError("its pixels are fractions, whose white is unknown")
    transparent = image.mode in ("RGBA", "LA", "La", "PA", "RGBa") or "transparency" in image.info
    if image.mode == "La":
        image = image.convert("LA")
    grey = image.mode in ("1", "L")
    pixels = np.array(image.convert("RGBA" if transparent else "L" if grey else "RGB"))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
