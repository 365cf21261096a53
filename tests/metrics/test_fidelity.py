# SPDX-License-Identifier: Apache-2.0
"""Scores in Inception's and DINOv2's features against torch-fidelity's own, on the same images.

Offline, the weights are random: Kaiming's, since the default ones make all features equal.
"""

import ast
import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from torchmetrics.image.fid import FrechetInceptionDistance

from scm_lightning import metrics
from scm_lightning.metrics import (
    InceptionFeatures,
    Reference,
    SampleScores,
    TrainingData,
    fidelity,
)

pytest.importorskip("torch_fidelity")
NAMES = {
    "frechet_inception_distance": "fid",
    "kernel_inception_distance_mean": "kid",
    "kernel_inception_distance_std": "kid_std",
    "inception_score_mean": "inception_score",
    "inception_score_std": "inception_score_std",
    "precision": "precision",
    "recall": "recall",
}


class Bytes(Dataset):
    """Images as torch-fidelity takes them."""

    def __init__(self, images):
        self.images = (255 * images).round().byte().expand(-1, 3, -1, -1)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return self.images[number]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of random weights for torch-fidelity's Inception; 91 MiB."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    with pytest.MonkeyPatch.context() as patch:
        extractor = inception.FeatureExtractorInceptionV3
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(extractor, "load_state_dict", lambda *_, **__: None)
        network = extractor("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, generator=generator)
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def images():
    """Samples and data: noise of different sizes of grain. (N, 1, 8, 8) in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    fine = torch.rand(13, 1, 8, 8, generator=generator)
    coarse = torch.rand(8, 1, 4, 4, generator=generator)
    return fine, coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)


def scores_of(extractor, samples, data):
    """Scores of samples, drawn in two orders, the later first; data come in two batches."""
    batches = data.split(7)
    content = TrainingData(lambda: batches, lambda x: x, len(data), data.nbytes, 0.7)
    reference = Reference(extractor, content, torch.device("cpu"))
    drawn = SampleScores(reference, block_size=50, kid=True, precision_recall=True, nearest=True)
    for indices in reversed(torch.arange(len(samples)).split(8)):
        drawn.update(indices, samples[indices], indices % 3)
    return drawn.compute()


def by_torch_fidelity(weights, samples, data, **options):
    from torch_fidelity import calculate_metrics

    return calculate_metrics(
        input1=Bytes(samples),
        input2=Bytes(data),
        **dict.fromkeys(("fid", "kid", "isc", "prc"), True),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        kid_subset_size=min(len(samples), len(data)),
        **{"cuda": False, "save_cpu_ram": True, "cache": False, "verbose": False},
        **options,
    )


def assert_equal(found, expected):
    for name, ours in NAMES.items():
        assert found[ours].value == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name


def test_scores_are_those_of_torch_fidelity(weights, images):
    """In the first layer's 64 features, whose covariance takes no minute; gray images."""
    extractor = InceptionFeatures(str(weights))
    extractor.network.features_list, extractor.num_features = ["64", "logits_unbiased"], 64
    found = scores_of(extractor, *images)
    layers = {f"feature_layer_{kind}": "64" for kind in ("fid", "kid", "prc")}
    expected = by_torch_fidelity(weights, *images, **layers)
    assert expected["frechet_inception_distance"] > 1e-4
    assert expected["inception_score_mean"] > 1.0
    assert_equal(found, expected)
    assert found.keys() == {*NAMES.values(), "nearest"}  # Inception's classes are not the data's


@pytest.mark.slow
def test_scores_are_those_of_torch_fidelity_and_torchmetrics_in_all_features(weights, images):
    samples, data = images
    found = scores_of(InceptionFeatures(str(weights)), samples, data)
    assert_equal(found, by_torch_fidelity(weights, samples, data))
    metric = FrechetInceptionDistance(
        feature=2048, feature_extractor_weights_path=str(weights), antialias=False
    )
    metric.update(Bytes(data).images, real=True)
    metric.update(Bytes(samples).images, real=False)
    assert found["fid"].value == pytest.approx(float(metric.compute()), rel=1e-5)


def test_images_become_the_bytes_they_were():
    """Every level, through data units in float32: cutting off would change 15 of them."""
    pixels = torch.arange(256, dtype=torch.float32).reshape(4, 1, 8, 8)
    mean, std = torch.tensor(125.3), torch.tensor(63.0)
    images = (((pixels - mean) * (0.7 / std)) * (std / 0.7) + mean) / 255.0
    found = fidelity.rgb_bytes(images.clamp(0, 1))
    assert torch.equal(found, pixels.byte().expand(4, 3, 8, 8))
    with pytest.raises(ValueError, match=r"got \(4, 8, 8\)"):
        fidelity.rgb_bytes(torch.zeros(2, 4, 8, 8))


def test_weights_are_named_by_their_checksum(weights):
    extractor = InceptionFeatures(str(weights))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    assert f"weights {digest}, not the published 6726825d" in extractor.description
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


class Malice:
    """An object whose unpickling writes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_weights_that_run_something_are_refused_unopened(tmp_path):
    torch.save({"fc.weight": Malice(tmp_path / "harm")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="must be a file of weights that"):
        InceptionFeatures(str(tmp_path / "bad.pth"))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("extractor", ["InceptionFeatures", "DINOv2Features"])
def test_unfit_weights_are_refused_in_one_line(extractor, tmp_path, monkeypatch):
    """A missing file, one of other weights, one of no weights, and no way to the net."""
    kind, file = getattr(metrics, extractor), tmp_path / "weights.pth"
    with pytest.raises(ValueError, match="No such file"):
        kind(weights=str(file))
    for content, message in (({"a": torch.ones(2)}, "got others"), ([1], "a state dict of ten")):
        torch.save(content, file)
        with pytest.raises(ValueError, match=message) as caught:
            kind(weights=str(file))
        assert "\n" not in str(caught.value)

    def offline(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match=r"no route to host; download it .* as weights"):
        kind()


@pytest.mark.parametrize("extractor", ["InceptionFeatures", "DINOv2Features"])
def test_without_torch_fidelity_an_extractor_says_how_to_install_it(extractor, monkeypatch):
    monkeypatch.setattr(fidelity, "is_installed", lambda: False)
    with pytest.raises(ValueError, match=r'not installed; run pip install -c .* "\.\[fid\]"'):
        getattr(metrics, extractor)()


def test_torch_fidelity_is_imported_on_use_only():
    """The package works without it: no module of the room imports it as it is imported itself."""
    for file in Path(metrics.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [getattr(node, "module", None) or ""] + [
                alias.name for alias in getattr(node, "names", [])
            ]
            assert not any(name.startswith("torch_fidelity") for name in names), file
