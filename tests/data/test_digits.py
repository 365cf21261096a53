# SPDX-License-Identifier: Apache-2.0
"""Digits from shards: complete, disjoint, normalised, in a reproducible order."""

import json

import numpy as np
import pytest
import torch

from scm_lightning.data import (
    Batch,
    Digits,
    RequestStream,
    ShardIndex,
    TrainingStream,
    load_digit_splits,
    prepare_digits,
    read_shards,
    write_shards,
)
from scm_lightning.data.shards import decode_sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "shards"
    prepare_digits(folder)
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
        samples = list(read_shards(index.files(folder, split)))
        assert len(samples) == index.splits[split].num_samples
        assert np.array_equal(np.stack([sample.pixels for sample in samples]), images)
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
    stream = iter(data.train_dataloader())
    first, second = ([next(stream) for _ in range(3)] for _ in range(2))
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


def keys(samples):
    return [sample.key for sample in samples]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_and_workers_share_an_epoch_without_overlap(folder, num_workers):
    """Two processes, each with its loader: together every sample once."""
    files = ShardIndex.read(folder).files(folder, "heldout")
    seen = []
    for rank in range(2):
        stream = TrainingStream(files, 30, keys, seed=0, rank=rank, world_size=2)
        loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=num_workers)
        batches = iter(loader)
        for _ in range(6):  # 2 processes x 6 batches x 30 = 360
            seen += next(batches)
    assert len(set(seen)) == len(seen) == 360


def test_too_few_samples_for_the_processes_are_refused(tmp_path):
    pairs = [(np.zeros((1, 2), np.uint8), 0)]
    (name,) = write_shards(pairs, str(tmp_path / "a-%06d.tar"), 5)
    stream = TrainingStream([str(tmp_path / name)], 4, keys, seed=0, rank=1, world_size=2)
    with pytest.raises(ValueError, match="1 samples are too few for 2 processes"):
        next(iter(stream))


def test_orders_are_class_balanced_and_split_unpadded():
    """11 samples over 3 processes: each once, classes in turn."""
    orders = [
        order
        for rank in range(3)
        for order in RequestStream(11, 4, 3, (1, 2), seed=5, rank=rank, world_size=3)
    ]
    indices = torch.cat([order.indices for order in orders])
    assert sorted(indices.tolist()) == list(range(11))
    assert all(torch.equal(order.labels, order.indices % 4) for order in orders)
    assert len(RequestStream(11, 4, 3, (1, 2), seed=5, rank=0, world_size=3)) == 2


def test_a_folder_is_prepared_once(folder):
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    module(folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_a_broken_preparation_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(ShardIndex, "write", lambda self, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare_digits(tmp_path / "shards")
    assert list(tmp_path.iterdir()) == []


def copy(folder, target):
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_damaged_folders_are_refused(folder, tmp_path):
    target = copy(folder, tmp_path / "a")
    (target / "train-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"lists the shard train-000001\.tar, which is missing"):
        module(target)
    target = copy(folder, tmp_path / "b")
    fields = json.loads((target / "shards.json").read_text())
    (target / "shards.json").write_text(json.dumps({**fields, "format_version": 99}))
    with pytest.raises(ValueError, match="must have format version 1, got 99"):
        module(target)
    (target / "shards.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        module(target)


def test_misfitting_samples_are_refused(folder, tmp_path):
    """A label beyond the classes and an image of another shape: named by key."""
    for number, (shape, label) in enumerate([((1, 8, 8), 10), ((1, 8, 9), 3)]):
        target = copy(folder, tmp_path / str(number))
        pairs = [(np.zeros(shape, np.uint8), label)]
        write_shards(pairs, str(target / "heldout-%06d.tar"), 5)
        with pytest.raises(ValueError, match="in sample 00000000; prepare the shards again"):
            list(module(target).heldout_batches())


def test_damaged_samples_are_named():
    with pytest.raises(ValueError, match=r"sample 7 of shard s\.tar has no member 'x.npy'"):
        decode_sample({"__key__": "7", "__url__": "s.tar", "cls": b"1"})
    with pytest.raises(ValueError, match=r"sample 7 of shard s\.tar is damaged"):
        decode_sample({"__key__": "7", "__url__": "s.tar", "x.npy": b"rubbish", "cls": b"1"})


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="batch sizes must be at least 1"):
        Digits(0.5, "x", batch_size=0)
    with pytest.raises(ValueError, match="numbers of samples must be at least 1"):
        Digits(0.5, "x", num_test_samples=0)
