# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST from idx files that the test writes: sizes, splits, damage, two at once."""

import gzip
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from scm_lightning.data import (
    FashionMNIST,
    ImageSet,
    ShardIndex,
    load_fashion_splits,
    prepare_shards,
    read_shard,
)

COUNTS = {"train": 23, "t10k": 12}


def idx(array, code=8):
    header = bytes((0, 0, code, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def source(tmp_path):
    """Random images; among the test labels each of 0 to 3 three times, sorted."""
    folder, generator = tmp_path / "source", np.random.default_rng(0)
    folder.mkdir()
    for prefix, count in COUNTS.items():
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) // 3).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return folder


def module(source, root, **options):
    data = FashionMNIST(0.7, str(root), source=str(source), **options)
    data.prepare_data()
    data.setup("fit")
    return data


def originals(source, prefix):
    content = gzip.decompress((source / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(content[16:], np.uint8).reshape(-1, 28, 28)


def test_32_pixels_are_the_image_in_a_black_frame(source):
    images, labels = load_fashion_splits(source, 32)["train"]
    assert images.shape == (23, 1, 32, 32)
    # Of every label the images in their order: sorting by label undoes the taking in turn.
    restored = images[np.argsort(labels, kind="stable"), 0]
    assert np.array_equal(restored[:, 2:30, 2:30], originals(source, "train"))
    restored[:, 2:30, 2:30] = 0
    assert not restored.any()


def test_16_pixels_are_rounded_means_of_four(source):
    large, small = (load_fashion_splits(source, size)["heldout"][0] for size in (32, 16))
    assert small.shape == (12, 1, 16, 16)
    assert small.dtype == np.uint8
    corners = [large[..., i::2, j::2].astype(float) for i in (0, 1) for j in (0, 1)]
    assert np.array_equal(small, np.floor(sum(corners) / 4 + 0.5))


def test_classes_come_in_turn(source):
    labels = load_fashion_splits(source, 16)["heldout"][1]
    assert labels.tolist() == [0, 1, 2, 3] * 3


def test_shards_hold_both_splits(source, tmp_path):
    root = tmp_path / "shards"
    data = module(source, root, size=16)
    for split, (images, labels) in load_fashion_splits(source, 16).items():
        files = [root / shard.name for shard in data.index.splits[split].shards]
        samples = [sample for file in files for sample in read_shard(str(file))]
        assert np.array_equal(np.stack([sample.array for sample in samples]), images)
        assert [sample.label for sample in samples] == labels.tolist()
    assert (data.index.num_classes, data.index.class_names[5]) == (10, "Sandal")
    batch = next(data.reference_batches())
    assert float(batch.x0.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(batch.x0.std(correction=0)) == pytest.approx(0.7, rel=1e-4)


def test_shared_arguments_arrive():
    """Every argument of `ShardDataModule` gets through to the attribute of its name."""
    chosen = {"batch_size": 3, "sample_batch_size": 5, "num_workers": 2, "sample_seed": 7}
    data = FashionMNIST(0.7, "x", **chosen, shuffle_seed=11, use_labels=False, num_val_samples=13)
    assert {name: getattr(data, name) for name in chosen} == chosen
    assert (data.shuffle_seed, data.use_labels) == (11, False)
    assert data.num_samples == {"val": 13, "test": 10_000, "predict": 100}


def test_the_source_is_needed_once_only(source, tmp_path):
    module(source, tmp_path / "shards", size=32)
    assert module("nowhere", tmp_path / "shards", size=32).index.shape == (1, 32, 32)


def test_shards_of_another_size_are_refused(source, tmp_path):
    module(source, tmp_path / "shards", size=32)
    with pytest.raises(ValueError, match=r"must hold shards of size 16, got .* \(1, 32, 32\)"):
        module(source, tmp_path / "shards", size=16)
    with pytest.raises(ValueError, match=r"comes in the sizes \(16, 32\), got 28"):
        FashionMNIST(0.7, "x", size=28)


def test_a_missing_source_says_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"apt-get install dataset-fashion-mnist.*/usr/share"):
        module(tmp_path, tmp_path / "shards")
    assert list(tmp_path.iterdir()) == []


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
WHOLE = gzip.decompress(idx(np.zeros((23, 28, 28), np.uint8)))
DAMAGE = {
    "plain": (IMAGES, WHOLE, "must be a whole gzip file"),
    "cut": (IMAGES, gzip.compress(WHOLE)[:-9], "must be a whole gzip file"),
    "magic": (IMAGES, idx(np.zeros((23, 28, 28), np.int8), code=9), "00000803, got 00000903"),
    "axes": (LABELS, idx(np.zeros((12, 1), np.uint8)), "00000801, got 00000802"),
    "header": (IMAGES, gzip.compress(WHOLE[:13]), "ends within its header"),
    "short": (IMAGES, gzip.compress(WHOLE[:-1]), "must hold 18032 values by its header, got 18031"),
    "long": (IMAGES, gzip.compress(WHOLE + b"0"), "18032 values by its header, got 18033"),
    "side": (IMAGES, idx(np.zeros((23, 28, 27), np.uint8)), r"got shape \(23, 28, 27\)"),
    "counts": (LABELS, idx(np.zeros(11, np.uint8)), r"got shape \(12, 28, 28\) and 11 labels"),
    "class": (LABELS, idx(np.full(12, 10, np.uint8)), "must hold labels below 10, got 10"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named(source, damage):
    name, content, message = DAMAGE[damage]
    (source / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_fashion_splits(source, 16)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def toy():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)
    splits = {"train": (pixels, np.arange(3)), "heldout": (pixels, np.arange(3))}
    return ImageSet(splits, 3, 12.0, "a test")


def test_two_preparations_at_once_both_succeed(tmp_path):
    """Both have read the data before either has written: the second finds the first's folder."""
    meeting = Barrier(2, timeout=60)

    def load():
        meeting.wait()
        return toy()

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(prepare_shards, tmp_path / "shards", load, 2) for _ in range(2)]
        for run in runs:
            run.result()
    assert [file.name for file in tmp_path.iterdir()] == ["shards"]
    index = ShardIndex.read(tmp_path / "shards")
    files = [tmp_path / "shards" / shard.name for shard in index.splits["train"].shards]
    samples = [sample for file in files for sample in read_shard(str(file))]
    assert [sample.label for sample in samples] == [0, 1, 2]


def test_a_folder_that_others_fill_meanwhile_is_left_alone(tmp_path):
    def load():
        (tmp_path / "shards").mkdir()
        (tmp_path / "shards" / "letter").write_text("keep")
        return toy()

    with pytest.raises(OSError, match="not empty"):
        prepare_shards(tmp_path / "shards", load, 2)
    assert os.listdir(tmp_path) == ["shards"]
    assert os.listdir(tmp_path / "shards") == ["letter"]
