# SPDX-License-Identifier: Apache-2.0
r"""Moving digits: clips of one handwritten digit that crosses a canvas and bounces off its sides.

The corner of the digit is at

    p(f) = |(p_0 + v f + R) mod 2 R - R|     per axis, rounded to whole pixels

with R = SIDE - 8 pixels of room, p_0 uniform in [0, R], and v of uniform direction and speed. So
every frame shows one digit of `load_digit_splits` whole; a clip's class is the digit's.

Source: after Moving MNIST: Srivastava et al., arXiv 1502.04681, Section 4; one digit, 8x8 pixels,
sizes and speeds (ours).
Axes: N clips, F frames, H and W pixels, C channels.
"""

import numpy as np

from scm_lightning.data.shards import Array
from scm_lightning.preparation.content import Pixels
from scm_lightning.preparation.digits import Digits, digit_source, load_digit_splits
from scm_lightning.preparation.plan import Recipe
from scm_lightning.preparation.transform import ClipTransform

NUM_FRAMES, SIDE = 8, 16
SHAPE = (1, NUM_FRAMES, SIDE, SIDE)
SPEEDS = (0.5, 2.0)
"""Slowest and fastest digit. Pixels per frame."""
CLIPS_PER_DIGIT = {"train": 8, "heldout": 3}
SEEDS = {"train": 1, "heldout": 0}
SAMPLES_PER_SHARD = 1000


def moving_clips(digits: Array, clips_per_digit: int, seed: int) -> Array:
    """Let every digit move, always in the same way.

    Args:
        digits: images of the digits. (M, 1, 8, 8) uint8.
        clips_per_digit: motions of each.
        seed: of places and velocities.

    Returns:
        Clips: first one of every digit, then another of each, and so on. (N, 1, F, H, W) uint8.
    """
    num, side = clips_per_digit * len(digits), digits.shape[-1]
    random, room = np.random.default_rng(seed), SIDE - side
    start = random.uniform(0, room, (num, 1, 2))
    angle, speed = random.uniform(0, 2 * np.pi, num), random.uniform(*SPEEDS, num)
    velocity = (speed * np.stack([np.sin(angle), np.cos(angle)])).T[:, None]
    way = start + velocity * np.arange(NUM_FRAMES)[:, None]
    corners = np.abs((way + room) % (2 * room) - room).round().astype(np.int64)  # (N, F, 2)
    clips = np.zeros((num, *SHAPE), np.uint8)
    for n, f in np.ndindex(num, NUM_FRAMES):
        top, left = corners[n, f]
        clips[n, :, f, top : top + side, left : left + side] = digits[n % len(digits)]
    return clips


def load_moving_digit_splits() -> dict[str, tuple[Array, Array]]:
    """Let the digits of both splits move, always in the same way.

    Returns:
        For `train` (11,496) and `heldout` (1,080, of digits that the others do not show): clips,
        (N, 1, F, H, W) uint8 from 0 to 16, and labels, (N,).
    """
    splits = {}
    for split, (images, labels) in load_digit_splits().items():
        count = CLIPS_PER_DIGIT[split]
        splits[split] = moving_clips(images, count, SEEDS[split]), np.tile(labels, count)
    return splits


class MovingDigits(Digits):
    """Clips of moving digits, (1, 8, 16, 16), as a data module; see `ShardDataModule`.

    The shards are written on first use, as those of `Digits`.
    """

    def _recipe(self) -> Recipe:
        source = digit_source("moving load_digits", load_moving_digit_splits())
        return Recipe(
            source,
            ClipTransform(),
            Pixels(SHAPE),
            samples_per_shard=SAMPLES_PER_SHARD,
            seed=None,
        )
