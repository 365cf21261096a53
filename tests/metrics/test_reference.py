# SPDX-License-Identifier: Apache-2.0
"""The reference: computed once, read back exactly, and never used in the place of another."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from scm_lightning.metrics import FeatureExtractor, Features, Reference, TrainingData
from scm_lightning.metrics import reference as of_reference


class Means(FeatureExtractor):
    """Means of rows; the file of a reference must change with the description."""

    num_features = 3
    batch_size = 4

    def __init__(self, description="means"):
        super().__init__()
        self.description = description

    def forward(self, images):
        assert len(images) <= self.batch_size
        return Features(images.mean(3).flatten(1), None)


class Data:
    """Training data that count how often they are read."""

    def __init__(self, randn, folder):
        self.x0, self.times_read = randn(23, 1, 3, 5).float(), 0
        self.options = TrainingData(self.read, lambda x: x, 23, 1, 0.7, "a", folder)

    def read(self):
        self.times_read += 1
        yield from self.x0.split(9)


@pytest.fixture
def data(randn, tmp_path):
    return Data(randn, tmp_path)


def reference(options, description="means"):
    return Reference(Means(description), options, torch.device("cpu"))


def files(folder):
    return sorted(folder.glob("**/*.safetensors"))


def test_it_is_computed_once_and_read_back_exactly(data, tmp_path):
    """Mean and covariance against numpy; the second time without a look at the data."""
    first = reference(data.options)
    features = data.x0.mean(3).flatten(1)
    np.testing.assert_allclose(first.statistics.mean, features.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(first.statistics.cov, np.cov(features.numpy().T), rtol=1e-12)
    assert torch.equal(first.features, features)
    second = reference(data.options)
    assert torch.equal(second.statistics.cov, first.statistics.cov)
    assert torch.equal(second.statistics.mean, first.statistics.mean)
    assert torch.equal(second.features, first.features)
    assert second.statistics.num_samples == 23
    assert data.times_read == 1
    assert [file.name for file in files(tmp_path)] == [f"{first.digest}.safetensors"]


def test_features_are_kept_of_the_first_only(data, monkeypatch):
    monkeypatch.setattr(of_reference, "MAX_FEATURES", 11)
    found = reference(data.options)
    assert torch.equal(found.features, data.x0.mean(3).flatten(1)[:11])
    assert found.statistics.num_samples == 23


def test_other_data_and_extractors_have_references_of_their_own(data, tmp_path):
    """Each of the three is computed, and none replaces another."""
    others = (reference(replace(data.options, content="b")), reference(data.options, "other"))
    for each in (reference(data.options), *others):
        assert each.statistics.num_samples == 23
    assert data.times_read == 3
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("position", [-10, 0, None])
def test_a_damaged_file_is_computed_again(data, tmp_path, caplog, position):
    """A changed byte of the content or of the header, or a file cut short."""
    expected = reference(data.options).statistics.cov
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    if position is None:
        content = content[: len(content) // 2]
    else:
        content[position] ^= 255
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(reference(data.options).statistics.cov, expected)
    assert "is damaged" in caplog.text
    caplog.clear()
    assert torch.equal(reference(data.options).statistics.cov, expected)
    assert not caplog.text
    assert data.times_read == 2


def test_a_folder_that_cannot_be_written_is_one_line(data, tmp_path, caplog):
    """A file stands where the folder should be: nobody may write there, root neither."""
    (tmp_path / ".references").write_text("in the way")
    for _ in range(2):
        assert reference(data.options).statistics.num_samples == 23
    assert data.times_read == 2
    assert len(caplog.records) == 2
    assert "cannot be kept and is computed each time" in caplog.text


def test_a_reference_of_damaged_data_is_not_kept(data, tmp_path):
    """One of 24 samples could not be read."""
    assert reference(replace(data.options, num_samples=24)).statistics.num_samples == 23
    assert not files(tmp_path)


def test_the_nearest_is_looked_for_in_small_data_only(data):
    """A training image is its own nearest; data above the limit are never read whole."""
    small = reference(data.options)
    assert float(small.nearest(data.x0[3:5]).max()) < 1e-3
    large = reference(replace(data.options, num_bytes=2**30 + 1))
    assert large.nearest(data.x0) is None
    assert data.times_read == 1
