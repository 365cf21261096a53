# SPDX-License-Identifier: Apache-2.0
"""Image files of every form and in every bad shape."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from scm_lightning.preparation.sources import UnreadableImageError
from scm_lightning.preparation.sources.decoding import decode_image


def saved(image, suffix="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def decoded(content):
    return decode_image(content, "the image")


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("channels", "suffix"),
    [(1, "PNG"), (3, "PNG"), (4, "PNG"), (3, "BMP"), (4, "TIFF"), (3, "WEBP"), (4, "WEBP")],
)
def test_pixels_come_back(channels, suffix):
    pixels = noise(5, 7, channels)
    if suffix == "WEBP" and channels == 4:
        pixels[..., 3] |= 1  # the encoder drops colors that cannot be seen
    options = {"lossless": True} if suffix == "WEBP" else {}
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    found = decoded(saved(image, suffix, **options))
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("suffix", ["PNG", "TIFF"])
def test_16_bits_are_scaled_to_8(suffix):
    """White is 65,535, whose 255 parts are 257 wide."""
    values = np.array([[0, 128, 129, 257, 385, 386], [32767, 32768, 65000, 65406, 65407, 65535]])
    content = saved(Image.fromarray(values.astype(np.uint16)), suffix)
    expected = np.round(values / 257).astype(int)
    assert np.array_equal(decoded(content)[..., 0], expected)


def test_palette_transparency_and_two_levels():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    colors = [[70, 80, 90], [10, 20, 30], [40, 50, 60]]
    assert decoded(saved(image)).tolist() == [colors]
    assert decoded(saved(image, transparency=0))[0, :, 3].tolist() == [255, 0, 255]
    assert decoded(saved(image, transparency=0))[0, :, :3].tolist() == colors
    two_levels = Image.fromarray(np.array([[True, False]]))
    assert decoded(saved(two_levels)).tolist() == [[[255], [0]]]
    pale = Image.new("LA", (2, 1), (9, 77))
    assert decoded(saved(pale)).tolist() == [[[9, 9, 9, 77]] * 2]
    keyed = Image.fromarray(np.array([[5, 6]], np.uint8))
    assert decoded(saved(keyed, transparency=6)).tolist() == [[[5, 5, 5, 255], [6, 6, 6, 0]]]


def test_inks_are_turned_into_light():
    inks = noise(6, 5, 4)
    expected = (255 - inks[..., :3].astype(int)) * (255 - inks[..., 3:].astype(int)) / 255
    found = decoded(saved(Image.fromarray(inks, "CMYK"), "TIFF"))
    assert np.abs(found - expected).max() <= 1


def test_the_orientation_of_the_camera_is_applied():
    """Orientation 6: the first row is the right side."""
    pixels = noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.fromarray(pixels), exif=exif)
    assert np.array_equal(decoded(content), np.rot90(pixels, -1))


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    for suffix, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        content = saved(frames[0], suffix, save_all=True, append_images=frames[1:], **options)
        assert decoded(content).tolist() == [[[255, 0, 0]] * 4] * 3, suffix


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_cut_images_are_refused(suffix):
    content = saved(Image.fromarray(noise(40, 40, 3)), suffix)
    assert decoded(content).shape == (40, 40, 3)
    for kept in (0, 10, len(content) // 2):
        with pytest.raises(UnreadableImageError, match="the image cannot be read"):
            decoded(content[:kept])


def png_header(width, height):
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_bombs_are_refused_before_they_go_off(side):
    """Between one and two of Pillow's limits, where it only warns, and above."""
    with pytest.raises(UnreadableImageError, match=r"bomb"):
        decoded(png_header(side, side))


@pytest.mark.parametrize("suffix", ["PPM", "ICO", "PDF"])
def test_other_formats_are_not_tried(suffix):
    with pytest.raises(UnreadableImageError, match="not an image of a known format"):
        decoded(saved(Image.fromarray(noise(16, 16, 3)), suffix))


@pytest.mark.parametrize(
    "values", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70_000, np.int32)]
)
def test_numbers_of_unknown_scale_are_refused(values):
    with pytest.raises(UnreadableImageError, match=r"white is unknown|fit into 16 bits"):
        decoded(saved(Image.fromarray(values), "TIFF"))


def test_random_damage_never_raises_another_error():
    rng = np.random.default_rng(0)
    for suffix in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"):
        content = saved(Image.fromarray(noise(9, 9, 3)), suffix)
        for _ in range(60):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 4):
                damaged[place] = rng.integers(256)
            with contextlib.suppress(UnreadableImageError):
                assert decoded(bytes(damaged)).dtype == np.uint8
