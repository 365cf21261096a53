# SPDX-License-Identifier: Apache-2.0
"""Digits from shards: complete, disjoint, normalised, in a reproducible order."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch

from scm_lightning.data import (
    Batch,
    RequestStream,
    ShardIndex,
    read_shard,
)
from scm_lightning.preparation import Digits, digits, load_digit_splits

SHA256 = {
    "train-000000.tar": "6d0adefc110035a052fe31f6cc4e851a6d8d3721f23c4eded21ee414d6e6ab85",
    "train-000001.tar": "8bb6046f1f4b0cd18dfc90be3b2579e6c19ad306fe35027d160b65a922f1fdef",
    "train-000002.tar": "c002eba599ef69b9dfcaf4ca6fc71a960d1ab57e7db267e030e4030d69eba254",
    "train-000003.tar": "ed5dd4e25434c4dcdf03352fb1877d277b3fbeec94331a8cb508b033ccc84fa2",
    "heldout-000000.tar": "62db7d5a357e5b443641fe5a94eec2c18a8b3478b0eaaa43a4f30ab99ec3463a",
}
"""Of the files that 0.3.0 wrote: finished runs and their results depend on the order in them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "shards"
    Digits(0.7, str(folder)).prepare_data()
    return folder


def module(folder, **options):
    data = Digits(sigma_data=0.7, root=str(folder), **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_splits_are_disjoint_complete_and_balanced():
    """1,437 and 360; held out are 36 of every digit, in turn."""
    from sklearn.datasets import load_digits

    splits = load_digit_splits()
    (train, train_labels), (heldout, labels) = splits["train"], splits["heldout"]
    assert (len(train), len(heldout)) == (1437, 360)
    assert np.bincount(labels).tolist() == [36] * 10
    assert labels[:20].tolist() == [*range(10), *range(10)]
    together = np.concatenate([train, heldout]).reshape(1797, -1)
    everything = load_digits().data
    assert sorted(map(tuple, together)) == sorted(map(tuple, everything))
    right = {
        tuple(pixels): label for pixels, label in zip(everything, load_digits().target, strict=True)
    }
    assert all(right[tuple(x.ravel())] == y for x, y in zip(train, train_labels, strict=True))


def test_shards_give_back_every_sample(folder):
    index = ShardIndex.read(folder)
    for split, (images, labels) in load_digit_splits().items():
        files = [folder / shard.name for shard in index.splits[split].shards]
        samples = [sample for file in files for sample in read_shard(str(file))]
        assert len(samples) == index.splits[split].num_samples
        assert np.array_equal(np.stack([sample.array for sample in samples]), images)
        assert [sample.label for sample in samples] == labels.tolist()


def test_data_have_the_standard_deviation_asked_for(folder):
    """Mean 0 and sigma_data over the training split; back to pixels without loss."""
    data = module(folder)
    batches = list(data.reference_batches())
    x0 = torch.cat([batch.x0 for batch in batches])
    assert float(x0.std()) == pytest.approx(0.7, rel=1e-4)
    assert float(x0.mean()) == pytest.approx(0.0, abs=1e-5)
    images = torch.from_numpy(load_digit_splits()["train"][0]) / 16.0
    torch.testing.assert_close(data.to_images(x0), images)


def test_an_epoch_holds_every_sample_once_and_epochs_differ(folder):
    data = module(folder, batch_size=479)  # 3 x 479 = 1437
    loader = data.train_dataloader()
    first, second = list(loader), list(loader)
    assert len(loader) == len(first) == len(second) == 3
    assert isinstance(first[0], Batch)

    def rows(batches):
        return sorted(map(tuple, torch.cat([b.x0 for b in batches]).flatten(1).tolist()))

    assert rows(first) == rows(second)
    assert not torch.equal(first[0].x0, second[0].x0)


def test_order_follows_from_the_seed(folder):
    def labels(seed):
        return next(iter(module(folder, shuffle_seed=seed).train_dataloader())).labels.tolist()

    assert labels(3) == labels(3)
    assert labels(3) != labels(4)


def test_orders_are_class_balanced_and_dealt_whole():
    """11 samples over 3 processes: each once, classes in turn, in the batches of one process."""

    def orders(world_size):
        processes = [
            list(RequestStream(11, 4, 3, (1, 2), seed=5, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        assert len({len(own) for own in processes}) == 1
        dealt = [order for turn in zip(*processes, strict=True) for order in turn]
        assert all(torch.equal(order.labels, order.indices % 4) for order in dealt)
        return [order.indices.tolist() for order in dealt if len(order.indices)]

    assert orders(1) == orders(3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]


def test_a_folder_is_prepared_once(folder):
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.tar")}
    module(folder)
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*.tar")} == before


def test_a_broken_preparation_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(ShardIndex, "write", lambda self, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Digits(0.7, str(tmp_path / "shards")).prepare_data()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_writes_its_shards_draws_the_noise_of_one_that_has_them(tmp_path):
    before = torch.get_rng_state()
    Digits(0.7, str(tmp_path / "digits")).prepare_data()
    assert torch.equal(torch.get_rng_state(), before)


def test_files_are_those_of_every_version(folder):
    index = ShardIndex.read(folder)
    listed = [shard for split in index.splits.values() for shard in split.shards]
    assert {shard.name: shard.sha256 for shard in listed} == SHA256


def test_two_preparations_at_once_both_succeed(tmp_path, monkeypatch):
    """Both have written the digits before either puts them in place: the second drops its own."""
    meeting, replace = Barrier(2, timeout=60), os.replace

    def met(source, target):
        if Path(target) == tmp_path / "shards":
            meeting.wait()
        replace(source, target)

    monkeypatch.setattr(os, "replace", met)
    data = Digits(0.7, str(tmp_path / "shards"))
    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(data.prepare_data) for _ in range(2)]:
            run.result()
    assert [file.name for file in tmp_path.iterdir()] == ["shards"]
    assert ShardIndex.read(tmp_path / "shards").splits["heldout"].num_samples == 360


def test_a_folder_that_others_fill_meanwhile_is_left_alone(tmp_path, monkeypatch):
    def fill(*args):
        (tmp_path / "shards").mkdir()
        (tmp_path / "shards" / "letter").write_text("keep")
        return prepare(*args)

    prepare = digits.prepare
    monkeypatch.setattr(digits, "prepare", fill)
    with pytest.raises(OSError, match="not empty"):
        Digits(0.7, str(tmp_path / "shards")).prepare_data()
    assert os.listdir(tmp_path) == ["shards"]
    assert os.listdir(tmp_path / "shards") == ["letter"]


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="batch sizes must be at least 1"):
        Digits(0.5, "x", batch_size=0)
    with pytest.raises(ValueError, match="numbers of samples must be at least 1"):
        Digits(0.5, "x", num_test_samples=0)
