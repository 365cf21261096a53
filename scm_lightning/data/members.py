# SPDX-License-Identifier: Apache-2.0
"""Arrays and pictures to the bytes of a shard's members, and back; nothing is unpickled."""

import io
import struct
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]

MODES = {1: "L", 3: "RGB"}
"""Pillow's name of a picture's kind, by its number of channels."""


def array_bytes(array: Array) -> bytes:
    """File in numpy's format."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array) if array.ndim else array, allow_pickle=False)
    return buffer.getvalue()


def array_of(content: bytes) -> Array:
    """The array of a file in numpy's format, as it stands in that memory.

    Raises:
        ValueError: if it is not an array, is damaged, or holds objects.
    """
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("the array's format must have version 1.0")
    start = stream.tell() + 2 + int.from_bytes(content[stream.tell() : stream.tell() + 2], "little")
    shape, fortran_order, dtype = _header(content[stream.tell() : start])
    if dtype.hasobject or fortran_order:
        raise ValueError(f"the array must be of numbers in C order, got {dtype}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=256)
def _header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type. Parsed once, since most samples of a set have the same."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(header))


def picture_bytes(array: Array) -> bytes:
    """PNG file of a picture, (C, H, W) uint8."""
    buffer = io.BytesIO()
    rows = array[0] if len(array) == 1 else array.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(rows)).save(buffer, "png")
    return buffer.getvalue()


def picture_of(content: bytes, shape: tuple[int, ...]) -> Array:
    """The picture of a PNG file, (C, H, W) uint8.

    Args:
        content: the file.
        shape: what it must have. A larger one is refused before it takes memory.

    Raises:
        ValueError: if it is no PNG file, is damaged, or of another size or kind.
    """
    mode, (_, height, width) = MODES[shape[0]], shape
    wanted = f"the picture must be a PNG file of {height}x{width} pixels of {mode}"
    if content[16:24] != struct.pack(">II", width, height):  # of the header, before it is opened
        raise ValueError(f"{wanted}, got another file or another size")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            found = (picture.mode, picture.height, picture.width)
            if found != (mode, height, width):
                raise ValueError(f"{wanted}, got {found[1]}x{found[2]} of {found[0]}")
            array = np.asarray(picture)
    except (OSError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture is damaged: {str(error)[:200]}") from error
    return array.reshape(shape) if shape[0] == 1 else array.transpose(2, 0, 1)
