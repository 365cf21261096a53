# SPDX-License-Identifier: Apache-2.0
"""Pictures of data as grids with captions.

Images of one or three channels are shown as they are. Of other data every channel is a gray tile
below the one before, and every frame of a clip a tile beside it; vectors and sequences are gray
tiles of their numbers, a row for every channel. `moving_rows` shows clips as they move. A text may
stand under each sample.
Axes: N samples, C channels, F frames, H and W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL = 48
"""Side of an image on the page, at least. Screen pixels."""
CELL_WITH_TEXT = 96
"""Likewise, of an image with a text under it."""
GAP = 2
CAPTION = 210
TEXT_SIZE, LINE, MAX_LINES = 11, 13, 5
"""Size of the letters of a text, height of a line, and most lines. Screen pixels."""
FRAMES_IN_A_ROW = 20
"""Frames of clips beside each other in a captioned row, at least those of one clip."""
ROWS_OF_CLIPS = 3
"""Rows that a caption has of clips."""


def image_grid(images: Tensor, columns: int, texts: Sequence[str] = ()) -> Image.Image:
    """Tile images, row by row, without blurring their pixels.

    Args:
        images: (N, C, H, W), values in [0, 1]; or other data, see the module. NaN is shown white.
        columns: samples in a row, or frames of clips, but at least one clip.
        texts: what stands under each sample; N, or none.
    """
    tiles = _tiles(images, CELL_WITH_TEXT if texts else CELL)
    columns = _in_a_row(images, columns)
    if texts:
        tiles = np.concatenate([tiles, _written(texts, tiles.shape[2])], axis=1)
    rows = -(-len(tiles) // columns)
    height, width = tiles.shape[1:3]
    page = np.full((rows * columns, height, width, 3), 255, dtype=np.uint8)
    page[: len(tiles)] = tiles
    page = page.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return Image.fromarray(page.reshape(rows * height, columns * width, 3))


def captioned_rows(rows: Mapping[str, Tensor], texts: Sequence[str] = ()) -> Image.Image:
    """One row of images under the other, each with its caption on the left.

    Args:
        rows: caption to images. (N, C, H, W) each, values in [0, 1]; or other data. Of clips the
            first are shown, in up to `ROWS_OF_CLIPS` rows.
        texts: what stands under each image; N, or none.
    """
    strips = {}
    for caption, images in rows.items():
        columns = FRAMES_IN_A_ROW if are_clips(images) else len(images)
        most = ROWS_OF_CLIPS * _in_a_row(images, columns) if are_clips(images) else len(images)
        strips[caption] = image_grid(images[:most], columns, texts[:most])
    width = CAPTION + max(strip.width for strip in strips.values())
    page = Image.new("RGB", (width, sum(strip.height for strip in strips.values())), "white")
    draw, font, top = ImageDraw.Draw(page), ImageFont.load_default(16), 0
    for caption, strip in strips.items():
        page.paste(strip, (CAPTION, top))
        draw.text((8, top + strip.height // 2), caption, fill="black", font=font, anchor="lm")
        top += strip.height
    return page


def moving_rows(rows: Mapping[str, Tensor], texts: Sequence[str] = ()) -> list[Image.Image]:
    """Frames of an animated picture: `captioned_rows` of clips, a tile for each.

    Args:
        rows: caption to clips. (N, C, F, H, W) each, values in [0, 1].
        texts: what stands under each clip; N, or none.
    """
    num_frames = next(iter(rows.values())).shape[2]
    return [
        captioned_rows({caption: clips[:, :, frame] for caption, clips in rows.items()}, texts)
        for frame in range(num_frames)
    ]


def are_clips(images: Tensor) -> bool:
    """Tell whether these are clips, (N, C, F, H, W)."""
    return images.ndim == 5


def _in_a_row(images: Tensor, columns: int) -> int:
    return max(1, columns // images.shape[2]) if are_clips(images) else columns


def _written(texts: Sequence[str], width: int) -> Any:
    """Texts in small letters, centered, in as many lines as they need. (N, height, width, 3)."""
    font = ImageFont.load_default(TEXT_SIZE)
    wrapped = [_lines(text, width - GAP, font) for text in texts]
    height = LINE * max(len(lines) for lines in wrapped) + 2 * GAP
    strips = []
    for lines in wrapped:
        strip = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(strip)
        for number, line in enumerate(lines):
            place = ((width - GAP) // 2, GAP + LINE * number)
            draw.text(place, line, fill="black", font=font, anchor="ma")
        strips.append(np.asarray(strip))
    return np.stack(strips)


def _lines(text: str, width: int, font: Any) -> list[str]:
    """A text in lines that are not wider than a width, broken between words where it can be."""
    lines = [""]
    most = MAX_LINES * width + 1  # letters that could be seen, were each a pixel wide
    for word in text[:most].split():
        if font.getlength(joined := f"{lines[-1]} {word}".strip()) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], "..."]
    return lines


def _tiles(images: Tensor, cell: int) -> Any:
    """Tiles of every sample, with a gap below and to the right. (N, height, width, 3)."""
    num, channels = images.shape[:2]
    pixels = (images.detach().float().cpu().nan_to_num(1.0).clamp(0, 1) * 255).round().byte()
    if pixels.ndim < 4:  # a vector or sequence, which may be drawn out
        pixels = pixels.reshape(num, 1, 1, channels, -1)
        scales = [max(1, cell // side) for side in pixels.shape[-2:]]
    else:
        pixels = pixels.reshape(num, channels, math.prod(images.shape[2:-2]), *images.shape[-2:])
        scales = 2 * [max(1, cell // max(pixels.shape[-2:]))]
    is_color = pixels.shape[1] == 3
    pixels = pixels[:, None] if is_color else pixels[:, :, None].expand(-1, -1, 3, -1, -1, -1)
    # From (N, tiles below each other, 3, F, H, W).
    large = pixels.permute(0, 1, 3, 4, 5, 2).numpy().repeat(scales[0], 3).repeat(scales[1], 4)
    large = np.pad(large, [(0, 0)] * 3 + [(0, GAP)] * 2 + [(0, 0)], constant_values=255)
    below, beside, height, width = large.shape[1:5]
    return large.swapaxes(2, 3).reshape(num, below * height, beside * width, 3)
