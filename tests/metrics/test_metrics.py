# SPDX-License-Identifier: Apache-2.0
"""Distances: closed forms, and what the shipped classifier can and cannot see."""

import numpy as np
import pytest
import torch
from torch import nn

from scm_lightning.data import load_digit_splits
from scm_lightning.metrics import (
    DigitFeatures,
    FeatureExtractor,
    Features,
    FrechetDistance,
    NearestNeighbourDistance,
    Reference,
    SampleScores,
)


def distance(real, generated):
    metric = FrechetDistance(real.shape[1])
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return float(metric.compute())


def test_frechet_distance_of_shifted_and_scaled_sets(randn):
    """Shift by a: |a|^2. Scale by k about the mean: (k - 1)^2 trace of the covariance."""
    x = randn(50, 3)
    x = x - x.mean(0)
    shift = torch.tensor([0.3, -0.4, 0.0]).double()
    assert distance(x, x) == pytest.approx(0.0, abs=1e-10)
    assert distance(x, x + shift) == pytest.approx(0.25)
    assert distance(x, 1.5 * x) == pytest.approx(0.25 * float(torch.cov(x.T).trace()))


def test_frechet_distance_against_numpy(randn):
    """An independent matrix square root, in batches, with a shared reference."""
    real, generated = randn(60, 4), 0.7 * randn(40, 4) @ randn(4, 4) + 0.2
    whole, shared = FrechetDistance(4), FrechetDistance(4)
    for chunk in real.split(17):
        whole.update(chunk, real=True)
    shared.share_reference(whole)
    for chunk in generated.split(11):
        shared.update(chunk, real=False)
    covariances = [np.cov(x.numpy().T) for x in (real, generated)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors @ np.diag(values**0.5) @ vectors.T
    cross = np.linalg.eigvalsh(root @ covariances[1] @ root) ** 0.5
    shift = float((real.mean(0) - generated.mean(0)).square().sum())
    expected = shift + np.trace(covariances[0] + covariances[1]) - 2 * cross.sum()
    assert float(shared.compute()) == pytest.approx(expected, rel=1e-9)


def test_a_distance_needs_two_of_each(randn):
    metric = FrechetDistance(3)
    metric.update(randn(5, 3), real=True)
    metric.update(randn(1, 3), real=False)
    with pytest.raises(ValueError, match="got 5 real and 1 generated"):
        metric.compute()


def test_nearest_neighbour_by_hand():
    """Distances 0 and 5 to the nearest of two references, in units of 0.5."""
    metric = NearestNeighbourDistance(torch.tensor([[[0.0, 0.0]], [[10.0, 0.0]]]), sigma_data=0.5)
    metric.update(torch.tensor([[[10.0, 0.0]], [[3.0, 4.0]]]))
    assert float(metric.compute()) == pytest.approx(5.0)


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


def test_scores_of_a_set(randn):
    """Blocks, accuracy and counts by hand; the order of batches does not matter."""
    data, samples = randn(20, 1, 1, 2), randn(13, 1, 1, 2)
    reference = Reference(Pixels(), lambda x: x, [data[:7], data[7:]], 0.7, 5, torch.device("cpu"))
    labels = (samples[:, 0, 0, 0] > 0.5).long()
    labels[3] = 1 - labels[3]
    scores = SampleScores(reference, num_samples=19)  # six of them will not come
    for chosen in (range(5, 13), range(5)):
        chosen = torch.tensor(chosen)
        scores.update(chosen, samples[chosen], labels[chosen])
    found = scores.compute()
    flat, features = data.flatten(1), samples.flatten(1)
    blocks = [distance(flat, features[:5]), distance(flat, features[5:10])]
    assert found["fd"] == (pytest.approx(distance(flat, features)), 13)
    assert found["fd_block"] == (pytest.approx(sum(blocks) / 2), 5)
    assert found["accuracy"] == (pytest.approx(12 / 13), 13)
    nearest = torch.cdist(features, flat).min(1).values.mean() / 0.7
    assert found["nearest"] == (pytest.approx(float(nearest), rel=1e-5), 13)
