# SPDX-License-Identifier: Apache-2.0
"""Distances of clips: exact from kept statistics; one blind to order, the other to looks."""

import numpy as np
import pytest
import torch

from scm_lightning.metrics import (
    ClipFeatures,
    FeatureExtractor,
    Features,
    MovingDigitFeatures,
    Reference,
    SampleScores,
    TrainingData,
    frechet_distance,
    statistics,
)
from scm_lightning.metrics.clips import statistics_of_differences, statistics_of_frames
from scm_lightning.preparation import load_digit_splits
from scm_lightning.preparation.moving_digits import moving_clips


class TwoNumbers(FeatureExtractor):
    """A weighted sum of the pixels, and the first of them, which also tells the class."""

    num_features, description, only_images = 2, "two numbers", True

    def forward(self, images):
        pixels = images.flatten(1)
        weights = torch.arange(pixels.shape[1]).mul(0.1).cos()
        first = pixels[:, :1]
        features = torch.stack([pixels @ weights, pixels[:, 0]], dim=1)
        return Features(features, torch.cat([first, 0.5 - first], dim=1))


@pytest.fixture(scope="module")
def clips():
    digits = load_digit_splits()["heldout"][0]
    return torch.from_numpy(moving_clips(digits, 4, seed=3)) / 16


def scores(real, drawn, extractor):
    data = TrainingData(lambda: real.split(300), lambda x: x, len(real), 4 * real.numel(), 1.0)
    reference = Reference(ClipFeatures(extractor, real.shape[2]), data, torch.device("cpu"))
    scoring = SampleScores(reference)
    for indices in torch.arange(len(drawn)).split(300):
        scoring.update(indices, drawn[indices], None)
    return {name: score.value for name, score in scoring.compute().items()}


def test_statistics_of_frames_and_differences_follow_from_those_of_clips(randn):
    """As taken of the rows themselves, in float64."""
    features = randn(50, 4, 3) @ randn(3, 3) + randn(4, 3)  # (N, F, D), a mean for every frame
    whole = statistics(features.flatten(1))
    for ours, rows in (
        (statistics_of_frames(whole, 4), features.flatten(0, 1)),
        (statistics_of_differences(whole, 4), features.diff(dim=1).flatten(1)),
    ):
        expected = statistics(rows)
        assert ours.num_samples == expected.num_samples
        torch.testing.assert_close(ours.mean, expected.mean)
        torch.testing.assert_close(ours.cov, expected.cov)


def test_scores_of_clips_are_the_two_distances(clips):
    real, drawn = clips[:700], clips[700:]
    found = scores(real, drawn, TwoNumbers())
    assert "fd" not in found
    rows = [[TwoNumbers()(f).features for f in x.unbind(2)] for x in (real, drawn)]
    frames = [statistics(torch.cat(each)) for each in rows]
    changes = [statistics(torch.stack(each, 1).diff(dim=1).flatten(1)) for each in rows]
    assert found["frame_distance"] == pytest.approx(frechet_distance(*frames), rel=1e-4, abs=1e-9)
    expected = frechet_distance(*changes)
    assert found["temporal_distance"] == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_shuffled_frames_keep_the_frame_distance_and_lose_the_temporal_one(clips):
    """Real clips against real clips, with frames in order, shuffled, still, and two swapped."""
    real, drawn = clips[:720], clips[720:]
    order = torch.from_numpy(
        np.random.default_rng(0).permuted(np.tile(np.arange(8), (720, 1)), axis=1)
    )
    shuffled = torch.stack([clip[:, each] for clip, each in zip(drawn, order, strict=True)])
    still = drawn[:, :, 3:4].expand_as(drawn)
    extractor = MovingDigitFeatures()
    swapped = drawn[:, :, [0, 2, 1, 3, 4, 5, 6, 7]]
    sets = (drawn, shuffled, still, swapped)
    floor, mixed, stopped, stumbling = (scores(real, x, extractor) for x in sets)
    assert mixed["frame_distance"] == pytest.approx(floor["frame_distance"], rel=1e-3)
    assert mixed["temporal_distance"] > 5 * floor["temporal_distance"]
    assert stopped["temporal_distance"] > 5 * floor["temporal_distance"]
    assert stumbling["temporal_distance"] > 2 * floor["temporal_distance"]


def test_looks_that_a_clip_keeps_are_seen_by_the_frame_distance_alone(clips):
    """A pixel is brighter in all frames of every clip."""
    marked = clips[720:].clone()
    marked[..., 0, 0] += 3.0  # the second feature of every frame
    plain, shifted = (scores(clips[:720], x, TwoNumbers()) for x in (clips[720:], marked))
    assert shifted["frame_distance"] > plain["frame_distance"] + 5
    assert shifted["temporal_distance"] == pytest.approx(plain["temporal_distance"], rel=1e-3)


def test_the_class_of_a_clip_is_the_best_on_average():
    clips = torch.zeros(2, 1, 3, 4, 4)
    clips[0, 0, :, 0, 0] = torch.tensor([0.1, 0.1, 0.9])  # 1.1 against 0.4
    clips[1, 0, :, 0, 0] = torch.tensor([0.3, 0.2, 0.1])  # 0.6 against 0.9
    looked = ClipFeatures(TwoNumbers(), 3)(clips)
    assert looked.features.shape == (2, 6)
    assert looked.logits.argmax(1).tolist() == [0, 1]


def test_more_features_than_a_covariance_can_have_are_refused():
    with pytest.raises(
        ValueError, match=r"12288 features of a clip of 16 frames, and at most 4096"
    ):
        ClipFeatures(_wide(), 16)


def _wide():
    extractor = TwoNumbers()
    extractor.num_features = 768
    return extractor
