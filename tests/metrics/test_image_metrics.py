# SPDX-License-Identifier: Apache-2.0
"""Metrics as users of torchmetrics expect them, and distances known in closed form."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import foreign_module
import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.wrappers import FeatureShare

from scm_lightning.metrics import (
    FeatureExtractor,
    Features,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    fidelity,
    statistics,
)
from scm_lightning.metrics.frechet import frechet_distance, merged, moments, statistics_of

needs_fidelity = pytest.mark.skipif(not fidelity.is_installed(), reason="needs torch-fidelity")
FAR = 1000.0
"""Mean of features over their deviation, near one."""


class Pixels(FeatureExtractor):
    """Four pixels as features, and three of them as logits; counts how often it looks."""

    num_features = 4
    description = "pixels"

    def __init__(self):
        super().__init__()
        self.dropout, self.num_looks = nn.Dropout(), 0

    def forward(self, images):
        self.num_looks += 1
        features = self.dropout(images.flatten(1))
        return Features(features, features[:, :3])


def images(randn, num, scale=1.0):
    """Numbers that float32 holds exactly, also beside FAR. (num, 1, 2, 2)."""
    return ((scale * randn(num, 1, 2, 2)) * 256).round().float() / 256


def filled(metric, real, generated, size=7):
    for batch in real.split(size):
        metric.update(batch, real=True)
    for batch in generated.split(size):
        metric.update(batch, real=False)
    return metric


def test_frechet_distance_far_from_zero_is_that_in_closed_form(randn):
    """Shift by a, scale by k about the mean: |a|^2 + (k - 1)^2 trace C; batches, then two merged.

    Means near 1,000 are known to 1e-13.
    """
    x = images(randn, 30)
    x = torch.cat([x, -x])  # of mean zero
    shift = torch.tensor([0.25, -0.5, 0.0, 1.0]).reshape(1, 2, 2)
    expected = 1.3125 + 0.25 * float(torch.cov(x.flatten(1).T.double()).trace())
    metric, other = (FrechetDistance(Pixels()) for _ in range(2))
    real, generated = FAR + x, FAR + shift + 1.5 * x
    filled(metric, real[:11], generated[:52])
    filled(other, real[11:], generated[52:])
    metric.merge_state(other)
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-11)
    assert metric.compute().dtype == torch.float64


def test_merged_moments_far_from_zero_keep_the_digits_that_sums_lose(randn):
    """Near 1,000 a number is rounded by 1e-13, and its square by 1e-10."""
    x = FAR + randn(61, 4)
    known = torch.cov((x - FAR).T)  # that difference is exact
    found = statistics_of(merged([moments(part) for part in x.split(7)])).cov
    about_zero = (x.T @ x - 61 * torch.outer(x.mean(0), x.mean(0))) / 60
    assert float((found - known).abs().max()) < 1e-13
    assert float((about_zero - known).abs().max()) > 1e-11


def test_frechet_distance_is_that_of_torchmetrics(randn):
    """torchmetrics sums squares about zero: here near it."""

    class Identity(nn.Module):
        num_features = 4

        def forward(self, images):
            return images.flatten(1)

    real, generated = images(randn, 43), images(randn, 31, scale=0.7)
    theirs = filled(FrechetInceptionDistance(Identity(), normalize=False), real, generated)
    ours = filled(FrechetDistance(Pixels()), real, generated)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-6)


@needs_fidelity
def test_values_are_those_of_the_features_in_any_order(randn):
    """To the bit, whoever comes first; of a reference, in its order."""
    real, generated = images(randn, 43), images(randn, 31, scale=0.7)
    for kind, measure in (
        (KernelDistance, fidelity.kid),
        (PrecisionRecall, fidelity.precision_recall),
    ):
        found = filled(kind(Pixels()), real, generated).compute()
        assert found == filled(kind(Pixels()), real.flip(0), generated.flip(0), 31).compute()
        reference = kind(Pixels(), real.flatten(1))
        reference.update(generated.flip(0))
        ordered = generated.flatten(1)[generated.flatten(1).double().sum(1).argsort()]
        assert reference.compute() == measure(ordered, real.flatten(1))
    score = filled(InceptionScore(Pixels()), real, generated)
    assert (
        score.compute() == filled(InceptionScore(Pixels()), real[:0], generated.flip(0)).compute()
    )
    logits = generated.flatten(1)[:, :3]
    assert score.compute() == fidelity.inception_score(logits[logits.double().sum(1).argsort()])


def test_a_metric_is_reset_copied_and_kept(randn):
    """A clone, a pickle and a state dict go on where the metric was; a reset one begins anew."""
    real, generated = images(randn, 43), images(randn, 31)
    metric = FrechetDistance(Pixels())
    metric.persistent(True)
    filled(metric, real, generated)
    expected = metric.compute()
    loaded = FrechetDistance(Pixels())
    loaded.load_state_dict(metric.state_dict())
    loaded.update(real[:0])  # no image
    for copy in (metric.clone(), pickle.loads(pickle.dumps(metric)), loaded):
        assert copy.compute() == expected
        copy.update(2.0 * generated)
        assert copy.compute() != expected
    metric.reset()
    assert not metric.real.any()
    assert filled(metric, real, generated).compute() == expected
    metric.persistent(False)
    assert not any("real" in name for name in metric.state_dict())


def test_known_statistics_stand_for_real_images_and_survive_a_reset(randn):
    real, generated = images(randn, 43), images(randn, 31)
    metric = FrechetDistance(Pixels(), statistics(real.flatten(1)))
    for _ in range(2):
        metric.reset()
        metric.update(generated)
        expected = frechet_distance(statistics(real.flatten(1)), statistics(generated.flatten(1)))
        assert float(metric.compute()) == expected
    with pytest.raises(ValueError, match="from the reference or update, got both"):
        metric.update(real, real=True)


@needs_fidelity
@pytest.mark.parametrize("collection", [MetricCollection, FeatureShare])
def test_a_collection_looks_once(collection, randn):
    """A compute group from its second update on; `FeatureShare` always, whatever the metrics."""
    real, generated, extractor = images(randn, 43), images(randn, 31), Pixels()
    metrics = {"kd": KernelDistance(extractor), "pr": PrecisionRecall(extractor)}
    if collection is FeatureShare:
        metrics |= {"fd": FrechetDistance(extractor), "is": InceptionScore(extractor)}
    expected = {}
    for metric in (metric.clone() for metric in metrics.values()):
        value = filled(metric, real, generated, 16).compute()
        expected |= value if isinstance(value, dict) else {"fd": value}
    together, extractor.num_looks = collection(metrics), 0
    assert filled(together, real, generated, 16).compute() == expected
    assert extractor.num_looks == 5 + (collection is MetricCollection)
    together.reset()
    assert filled(together, real, generated, 16).compute() == expected


def test_an_image_that_is_not_finite_shows(randn):
    real, generated = images(randn, 43), images(randn, 31)
    generated[7, 0, 1, 1] = torch.inf
    kinds = [FrechetDistance]
    kinds += [KernelDistance, PrecisionRecall, InceptionScore] if fidelity.is_installed() else []
    for kind in kinds:
        value = filled(kind(Pixels()), real, generated).compute()
        values = value.values() if isinstance(value, dict) else [value]
        assert all(bool(each.isnan()) for each in values)


def test_what_cannot_be_measured_is_said(randn):
    with pytest.raises(
        ValueError, match="FrechetDistance needs a FeatureExtractor, got 2048; give"
    ):
        FrechetDistance(2048)  # torchmetrics' own takes a number of features
    metric = FrechetDistance(Pixels())
    with pytest.raises(ValueError, match=r"values in \[0, 1\], got torch.uint8; divide"):
        metric.update(images(randn, 5).byte())
    metric.update(images(randn, 5))
    with pytest.raises(ValueError, match="got 0 real and 5 generated; draw more"):
        metric.compute()


@needs_fidelity
@pytest.mark.parametrize(
    ("kind", "least"), [(KernelDistance, 2), (PrecisionRecall, 4), (InceptionScore, 10)]
)
def test_small_sets_are_refused(kind, least, randn):
    metric = filled(kind(Pixels()), images(randn, 23), images(randn, least - 1))
    with pytest.raises(ValueError, match=rf"at least {least} .* {least - 1} generated; draw more"):
        metric.compute()
    metric.update(images(randn, 1))
    assert all(bool(each.isfinite()) for each in metric.compute().values())


def test_without_torch_fidelity_the_frechet_distance_is_measured(randn, monkeypatch):
    monkeypatch.setattr(fidelity, "is_installed", lambda: False)
    found = filled(FrechetDistance(Pixels()), images(randn, 43), images(randn, 31)).compute()
    assert bool(found.isfinite())
    for kind in (KernelDistance, PrecisionRecall, InceptionScore):
        with pytest.raises(ValueError, match="need torch-fidelity, which is not installed"):
            kind(Pixels())


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """What somebody's module logs in one process, and in two."""
    folder = tmp_path_factory.mktemp("foreign")
    foreign_module.fit(folder, devices=1)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(foreign_module.__file__), folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: torch.load(folder / f"{name}.pt") for name in ("1.0", "2.0", "2.1")}


def test_somebodys_module_logs_the_same_in_two_processes(logged):
    """Every epoch anew, in both processes; Lightning keeps numbers in float32."""
    batches = [torch.cat(kind) for kind in zip(*foreign_module.batches(), strict=True)]
    real, generated = (
        statistics(foreign_module.DigitFeatures()(each).features) for each in batches
    )
    assert len(batches[0]) != len(batches[1])
    for epochs in logged.values():
        assert len(epochs) == 2
        for epoch in epochs:
            assert epoch["fd"] == pytest.approx(frechet_distance(real, generated), rel=1e-5)
            assert epoch == pytest.approx(logged["1.0"][0], rel=1e-7)
            assert ("kid" in epoch) == fidelity.is_installed()
