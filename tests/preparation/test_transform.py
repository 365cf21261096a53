# SPDX-License-Identifier: Apache-2.0
"""Crop, resize, alpha and channels of one image, in closed form."""

import pickle

import numpy as np
import pytest

from scm_lightning.preparation.sources import UnreadableImageError
from scm_lightning.preparation.transform import ImageTransform, compose


def grey(rows):
    return np.asarray(rows, np.uint8)[:, :, None]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("crop", ["center", "adm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_constant_image_stays_constant(crop, channels):
    image = np.full((53, 37, channels), 201, np.uint8)
    sample = ImageTransform(11, crop)(image)
    assert sample.shape == (channels, 11, 11)
    assert sample.dtype == np.uint8
    assert (sample == 201).all()


def test_a_ramp_is_sampled_at_the_centers_of_the_new_pixels():
    """Pixel i of a third of the size stands for 3 i, 3 i + 1 and 3 i + 2, whose mean is 3 i + 1."""
    ramp = grey(np.tile(np.arange(243), (243, 1)))
    row = ImageTransform(81)(ramp)[0, 40]
    assert row[4:-4].tolist() == [3 * i + 1 for i in range(4, 77)]


def test_frequencies_that_the_smaller_image_cannot_show_are_removed():
    """Stripes of 3 pixels are gone at half the size, and those of 16 are kept."""
    x = np.arange(96)

    def amplitude(period, crop, size):
        stripes = np.tile(128 + 100 * np.cos(2 * np.pi * x / period), (96, 1)).round()
        row = ImageTransform(size, crop)(grey(stripes))[0, size // 2, 8:-8].astype(float)
        return np.sqrt(2) * row.std()

    assert amplitude(3, "center", 48) < 12
    assert 90 < amplitude(16, "center", 48) < 105
    assert amplitude(3, "adm", 40) < 40  # halving by means lets more through than Lanczos
    assert amplitude(2, "adm", 40) < 2
    assert 85 < amplitude(16, "adm", 40) < 105


def test_the_central_square_is_taken():
    image = noise(7, 12, 3)
    assert np.array_equal(ImageTransform(7)(image), image[:, 2:9].transpose(2, 0, 1))
    assert np.array_equal(
        ImageTransform(7)(image.transpose(1, 0, 2)), image[:, 2:9].transpose(2, 1, 0)
    )
    assert np.array_equal(ImageTransform(7, "adm")(image), image[:, 2:9].transpose(2, 0, 1))


def test_adm_takes_means_of_two_pixels_along_each_axis():
    """64 x 96 pixels at size 16: halved twice, then cropped, with nothing left to resize."""
    image = noise(64, 96, 1)
    expected = image[:, :, 0].astype(int)
    for _ in range(2):
        expected = (expected[:, ::2] + expected[:, 1::2] + 1) // 2
        expected = (expected[::2] + expected[1::2] + 1) // 2
    assert np.array_equal(ImageTransform(16, "adm")(image)[0], expected[:, 4:20])


def test_adm_crops_what_it_has_resized():
    """Of 30 x 90 pixels the middle third is left, whose edges alone are blurred."""
    image = np.zeros((30, 90, 1), np.uint8)
    image[:, 30:60] = 255
    sample = ImageTransform(20, "adm")(image)
    assert (sample[0, :, 1:-1] == 255).all()
    assert (ImageTransform(20, "adm")(255 - image)[0, :, 1:-1] == 0).all()


def test_without_a_size_or_a_crop_the_pixels_are_the_same():
    image = noise(5, 9, 3)
    assert np.array_equal(ImageTransform()(image), image.transpose(2, 0, 1))
    square = noise(5, 5, 3)
    assert np.array_equal(ImageTransform(5, "none")(square), square.transpose(2, 0, 1))
    with pytest.raises(UnreadableImageError, match="must have 5x5 pixels, got 9x5"):
        ImageTransform(5, "none")(image)


@pytest.mark.parametrize("crop", ["center", "adm"])
def test_small_images_are_enlarged_on_request_only(crop):
    image = np.full((6, 9, 3), 77, np.uint8)
    with pytest.raises(UnreadableImageError, match="8 pixels or more, got 9x6"):
        ImageTransform(8, crop)(image)
    assert (ImageTransform(8, crop, upscale=True)(image) == np.full((3, 8, 8), 77)).all()


def test_alpha_is_composed_in_exact_arithmetic():
    """Against whole fractions, for every alpha and many colors."""
    colors, alphas = np.meshgrid(np.arange(0, 256, 5), np.arange(256), indexing="ij")
    image = np.stack([colors, 255 - colors, colors // 2, alphas], axis=2).astype(np.uint8)
    background = (255, 0, 90)
    composed = compose(image, background).astype(int)
    for channel in range(3):
        sums = image[:, :, channel].astype(int) * alphas + background[channel] * (255 - alphas)
        # Halves do not occur, as 255 is odd: the nearest whole number is one.
        assert (2 * np.abs(255 * composed[:, :, channel] - sums) < 255).all()


def test_colors_below_transparent_pixels_do_not_bleed():
    """Green is hidden; red over white has as much green as blue."""
    image = np.zeros((40, 40, 4), np.uint8)
    image[:, :18] = (0, 255, 0, 0)
    image[:, 18:] = (255, 0, 0, 255)
    for crop in ("center", "adm"):
        sample = ImageTransform(9, crop)(image)
        assert sample.shape == (3, 9, 9)
        assert np.array_equal(sample[1], sample[2])
        assert sample[1, 4].min() == 0
        assert sample[1, 4].max() == 255


def test_channels():
    color, white = noise(4, 4, 3), np.full((4, 4, 4), 255, np.uint8)
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(ImageTransform(channels=1)(color)[0] - color @ weights).max() < 0.51
    assert np.array_equal(ImageTransform(channels=3)(color[..., :1]), np.stack([color[..., 0]] * 3))
    assert ImageTransform()(color[..., :1]).shape == (1, 4, 4)
    assert ImageTransform(channels=1)(white).shape == (1, 4, 4)


def test_it_travels_to_workers():
    transform = ImageTransform(16, "adm", 3, (1, 2, 3), upscale=True)
    assert pickle.loads(pickle.dumps(transform)) == transform


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"crop": "left"}, {"channels": 4}, {"background": (0, 0, 256)}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ImageTransform(**options)
