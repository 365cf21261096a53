# SPDX-License-Identifier: Apache-2.0
"""Distances: closed forms, and what the shipped classifier can and cannot see."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from scm_lightning.metrics import (
    DigitFeatures,
    FeatureExtractor,
    Features,
    Reference,
    SampleScores,
    Score,
    TrainingData,
    fidelity,
    frechet_distance,
    nearest_distances,
    statistics,
)
from scm_lightning.metrics.frechet import merged, moments, statistics_of
from scm_lightning.preparation import load_digit_splits


def distance(real, generated):
    return frechet_distance(statistics(real), statistics(generated))


def test_frechet_distance_of_shifted_and_scaled_sets(randn):
    """Shift by a: |a|^2. Scale by k about the mean: (k - 1)^2 trace of the covariance."""
    x = randn(50, 3)
    x = x - x.mean(0)
    shift = torch.tensor([0.3, -0.4, 0.0]).double()
    assert distance(x, x) == pytest.approx(0.0, abs=1e-10)
    assert distance(x, x + shift) == pytest.approx(0.25)
    assert distance(x, 1.5 * x) == pytest.approx(0.25 * float(torch.cov(x.T).trace()))


def test_frechet_distance_against_numpy(randn):
    """An independent matrix square root."""
    real, generated = randn(60, 4), 0.7 * randn(40, 4) @ randn(4, 4) + 0.2
    covariances = [np.cov(x.numpy().T) for x in (real, generated)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors @ np.diag(values**0.5) @ vectors.T
    cross = np.linalg.eigvalsh(root @ covariances[1] @ root) ** 0.5
    shift = float((real.mean(0) - generated.mean(0)).square().sum())
    expected = shift + np.trace(covariances[0] + covariances[1]) - 2 * cross.sum()
    assert distance(real, generated) == pytest.approx(expected, rel=1e-9)


class Identity(nn.Module):
    """Stands where torchmetrics wants a network."""

    num_features = 4

    def forward(self, features):
        return features


def test_frechet_distance_is_that_of_torchmetrics(randn):
    real, generated = randn(60, 4), 0.7 * randn(40, 4) @ randn(4, 4) + 0.2
    metric = FrechetInceptionDistance(feature=Identity())
    metric.update(real, real=True)
    metric.update(generated, real=False)
    assert distance(real, generated) == pytest.approx(float(metric.compute()), rel=1e-9)


def test_statistics_of_batches_are_those_of_the_whole(randn):
    """Far from zero, where sums of squares lose nine digits; an empty batch counts nothing."""
    x = randn(60, 4) + 30_000.0
    found = statistics_of(merged([moments(batch) for batch in (*x.split(17), x[:0])]))
    assert found.num_samples == 60
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.cov, np.cov((x - 30_000.0).numpy().T), rtol=1e-9)


def test_a_distance_needs_two_of_each(randn):
    with pytest.raises(ValueError, match="got 5 real and 1 generated"):
        distance(randn(5, 3), randn(1, 3))


def test_nearest_neighbour_by_hand():
    """Distances 0 and 5 to the nearest of two references, in units of 0.5."""
    reference = torch.tensor([[[0.0, 0.0]], [[10.0, 0.0]]])
    samples = torch.tensor([[[10.0, 0.0]], [[3.0, 4.0]]])
    assert nearest_distances(samples, reference, sigma_data=0.5).tolist() == [0.0, 10.0]


def test_shipped_classifier_knows_digits_it_has_not_seen():
    """Accuracy on the 360 held-out digits: 354 right, as the training script printed."""
    images, labels = load_digit_splits()["heldout"]
    looked = DigitFeatures()(torch.from_numpy(images) / 16.0)
    assert looked.features.shape == (360, 32)
    assert int((looked.logits.argmax(1) == torch.from_numpy(labels)).sum()) == 354


def test_distance_grows_with_noise_blur_and_missing_classes():
    """Ten times the floor or more for each; noise more so the stronger it is."""
    splits, features = load_digit_splits(), DigitFeatures()
    (train, labels), (heldout, _) = splits["train"], splits["heldout"]
    images = torch.from_numpy(train) / 16.0
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)

    def score(images):
        return distance(
            features(torch.from_numpy(train) / 16.0).features, features(images).features
        )

    floor = score(torch.from_numpy(heldout) / 16.0)
    assert 0.02 < floor < 0.2
    noisy = [score((images + std * noise).clamp(0, 1)) for std in (0.0, 0.2, 0.4)]
    blurred = score(nn.functional.avg_pool2d(images, 3, stride=1, padding=1))
    skewed = score(images[torch.from_numpy(labels) < 8])
    assert noisy[0] < 1e-6 < noisy[1] < noisy[2]
    assert min(noisy[2], blurred, skewed) > 3 * floor


def test_digit_features_refuse_other_images():
    with pytest.raises(ValueError, match=r"of shape \(1, 8, 8\), got \(3, 8, 8\)"):
        DigitFeatures()(torch.zeros(2, 3, 8, 8))


class Pixels(FeatureExtractor):
    """Pixels as features; the class is whether the first pixel is bright."""

    num_features = 2
    description = "pixels"

    def forward(self, images):
        bright = images[:, 0, 0, :1]
        return Features(images.flatten(1), torch.cat([1 - bright, bright], 1))


def reference_of(data, parts=1, extractor=None):
    """A reference of some data that are their own images up to 9, sigma_data 0.7."""
    batches = data.chunk(parts)
    size = (len(data), 4 * data.numel())
    content = TrainingData(lambda: iter(batches), lambda x: x.clamp(-9, 9), *size, 0.7)
    return Reference(extractor or Pixels(), content, torch.device("cpu"))


def test_scores_of_a_set(randn):
    """Blocks, accuracy and counts by hand; the order of batches does not matter."""
    data, samples = randn(20, 1, 1, 2), randn(13, 1, 1, 2)
    reference = reference_of(data, parts=2)
    labels = (samples[:, 0, 0, 0] > 0.5).long()
    labels[3] = 1 - labels[3]
    drawn = SampleScores(reference, block_size=5, nearest=True)
    for chosen in (range(5, 13), range(0), range(5)):
        chosen = torch.tensor(chosen, dtype=torch.int64)
        drawn.update(chosen, samples[chosen], labels[chosen])
    found = drawn.compute()
    flat, features = data.flatten(1).float(), samples.flatten(1).float()
    blocks = [distance(flat, features[:5]), distance(flat, features[5:10])]
    nearest = torch.cdist(features, flat).min(1).values.mean() / 0.7
    assert found == {
        "fd": (pytest.approx(distance(flat, features)), 13),
        "fd_block": (pytest.approx(sum(blocks) / 2), 5),
        "accuracy": (pytest.approx(12 / 13), 13),
        "nearest": (pytest.approx(float(nearest), rel=1e-5), 13),
    }


def test_a_sample_that_is_not_finite_shows(randn):
    """One in eleven makes every distance NaN; nothing ends in an error."""
    data, samples = randn(20, 1, 1, 2), randn(11, 1, 1, 2)
    samples[4, 0, 0, 1] = torch.inf
    reference = reference_of(data)
    drawn = SampleScores(reference, block_size=5, kid=True, precision_recall=True)
    drawn.update(torch.arange(11), samples, None)
    found = drawn.compute()
    assert np.isnan(found["fd"].value)
    assert np.isnan([score.value for score in found.values()]).all()


def test_without_torch_fidelity_the_rest_is_measured(randn, monkeypatch):
    monkeypatch.setattr(fidelity, "is_installed", lambda: False)
    reference = reference_of(randn(20, 1, 1, 2))
    drawn = SampleScores(reference, block_size=9, kid=True, precision_recall=True, nearest=True)
    drawn.update(torch.arange(7), randn(7, 1, 1, 2), None)
    found = drawn.compute()
    assert found.keys() == {"fd", "nearest"}
    assert found["fd"] == Score(pytest.approx(found["fd"].value), 7)


def test_features_are_not_of_lower_precision_under_autocast(randn):
    """A run in bfloat16 draws in it; its samples are looked at in float32."""
    images = randn(5, 1, 8, 8).sigmoid().float()
    reference = reference_of(images, extractor=DigitFeatures())
    with torch.autocast("cpu", torch.bfloat16):
        found = reference.look(images)
    assert torch.equal(found.features, reference.look(images).features)


class Pretender(Pixels):
    """Calls its distance by Inception's name."""

    distance_name = "FID"


def test_no_other_distance_is_called_fid(randn):
    with pytest.raises(ValueError, match="only InceptionFeatures gives a FID, got pixels"):
        reference_of(randn(5, 1, 1, 2), extractor=Pretender())
