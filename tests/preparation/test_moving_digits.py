# SPDX-License-Identifier: Apache-2.0
"""Clips of moving digits: whole digits on straight ways that bounce, the same in every run."""

import hashlib

import numpy as np
import pytest
import torch

from scm_lightning.preparation import MovingDigits, load_digit_splits
from scm_lightning.preparation.moving_digits import (
    NUM_FRAMES,
    SHAPE,
    SIDE,
    SPEEDS,
    load_moving_digit_splits,
    moving_clips,
)

SHA256 = "5fab9cd79ac0be65"
"""First digits, of the checksums of all shards: results depend on them."""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    data = MovingDigits(0.5, str(tmp_path_factory.mktemp("moving") / "shards"), batch_size=500)
    data.prepare_data()
    data.setup("fit")
    return data


def corners(clips):
    """Where a pattern without black pixels stands in every frame. (N, F, 2)."""
    lit = clips[:, 0] > 0
    return np.stack([lit.any(3).argmax(2), lit.any(2).argmax(2)], axis=-1)


def test_every_frame_shows_the_digit_whole():
    """Cut out at its place, every frame is the digit to the last pixel, and black elsewhere."""
    digits = load_digit_splits()["heldout"][0][:7]
    clips = moving_clips(digits, 2, seed=5)
    assert clips.shape == (14, *SHAPE)
    blocks = moving_clips(np.ones_like(digits), 2, seed=5)  # the same ways, of white squares
    assert (blocks.sum((1, 3, 4)) == 64).all()
    for n, frame in np.ndindex(14, NUM_FRAMES):
        inside = blocks[n, 0, frame] == 1
        np.testing.assert_array_equal(clips[n, 0, frame][inside], digits[n % 7, 0].ravel())
        assert not clips[n, 0, frame][~inside].any()


def test_ways_are_straight_but_for_bounces():
    """Unfolded at the sides, a way has a constant velocity to within the rounding of its ends."""
    blocks = moving_clips(np.ones((400, 1, 8, 8), np.uint8), 1, seed=5)
    places, room = corners(blocks).astype(float), SIDE - 8
    assert places.min() == 0
    assert places.max() == room
    away = np.diff(places, axis=1)
    within = (places[:, :-1] > 2) & (places[:, :-1] < room - 2)
    within &= (places[:, 1:] > 2) & (places[:, 1:] < room - 2)
    straight = within.all(1)  # never near a side
    assert straight.sum() > 20
    for axis in (0, 1):
        steps = away[..., axis][straight[:, axis]]
        assert (steps.max(1) - steps.min(1) <= 1).all()
    speeds = np.linalg.norm(away, axis=-1).mean(1)
    assert speeds.max() < SPEEDS[1] + 0.5
    assert (np.sign(away).max(1) - np.sign(away).min(1) == 2).any(), "nothing bounced"


def test_held_out_clips_are_of_other_digits_and_classes_come_in_turn(module):
    splits = load_moving_digit_splits()
    pixels = {
        name: {clip[0, 0][clip[0, 0] > 0].tobytes() for clip in clips}  # wherever the digit is
        for name, (clips, _) in splits.items()
    }
    assert [len(each) for each in pixels.values()] == [1437, 360]
    assert not pixels["train"] & pixels["heldout"]
    assert {name: split.num_samples for name, split in module.index.splits.items()} == {
        "train": 11496,
        "heldout": 1080,
    }
    heldout = next(module.heldout_batches())
    assert heldout.labels[:20].tolist() == [*range(10), *range(10)]
    assert heldout.x0.shape[1:] == SHAPE


def test_clips_are_data_of_unit_scale_and_the_same_in_every_run(module):
    x0 = next(iter(module.train_dataloader())).x0
    assert x0.shape == (500, *SHAPE)
    assert float(x0.std()) == pytest.approx(0.5, rel=0.02)
    assert float(x0.mean()) == pytest.approx(0.0, abs=0.01)
    images = module.to_images(x0)
    assert images.shape == (500, *SHAPE)
    torch.testing.assert_close((images * 16).round() / 16, images)
    files = "".join(shard.sha256 for shard in module.index.shards)
    assert hashlib.sha256(files.encode()).hexdigest()[:16] == SHA256
