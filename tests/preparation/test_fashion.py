# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST from idx files that the test writes: sizes, splits, damage."""

import gzip
import struct

import numpy as np
import pytest

from scm_lightning.cli import main
from scm_lightning.data import ShardIndex, read_shard
from scm_lightning.preparation.sources import open_source
from scm_lightning.preparation.sources.fashion import open_fashion

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


def shards(source, root, *options):
    words = ["--source", str(source), "--out", str(root), "--workers", "0", *options]
    main(["prepare", *words])
    return {
        split: [sample for shard in of.shards for sample in read_shard(str(root / shard.name))]
        for split, of in ShardIndex.read(root).splits.items()
    }


def originals(source, prefix):
    content = gzip.decompress((source / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(content[16:], np.uint8).reshape(-1, 28, 28)


def test_images_have_a_black_frame(source):
    opened = open_source(str(source))
    assert opened.kind == "fashion"
    assert [item.split for item in opened.items] == ["train"] * 23 + ["heldout"] * 12
    images = opened.images.copy()
    assert images.shape == (35, 32, 32, 1)
    whole = np.concatenate([originals(source, prefix) for prefix in COUNTS])
    assert np.array_equal(images[:, 2:30, 2:30, 0], whole)
    images[:, 2:30, 2:30] = 0
    assert not images.any()


def test_both_sizes_are_had_by_one_command(source, tmp_path):
    """32x32 as they are, 16x16 the rounded means of rounded means."""
    large = shards(source, tmp_path / "32", "--size", "32", "--crop", "none")
    small = shards(source, tmp_path / "16", "--size", "16", "--crop", "adm")
    framed = open_fashion(source).images[..., 0]
    for split, count in (("train", 23), ("heldout", 12)):
        stored = np.stack([sample.array[0] for sample in large[split]])
        own = framed[:23] if split == "train" else framed[23:]
        assert sorted(map(bytes, stored)) == sorted(map(bytes, own))
        corners = stored.reshape(count, 16, 2, 16, 2).astype(int)
        along_x = (corners.sum(axis=4) + 1) // 2  # rounded, as Pillow does, before y
        halved = np.stack([sample.array[0] for sample in small[split]])
        assert np.array_equal(halved, (along_x.sum(axis=2) + 1) // 2)
        assert [each.label for each in small[split]] == [each.label for each in large[split]]
    assert ShardIndex.read(tmp_path / "16").class_names[5] == "Sandal"


def test_a_missing_source_says_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"apt-get install dataset-fashion-mnist.*/usr/share"):
        open_fashion(tmp_path)


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
WHOLE = gzip.decompress(idx(np.zeros((23, 28, 28), np.uint8)))
DAMAGE = {
    "plain": (IMAGES, WHOLE, "must be a whole gzip file"),
    "cut": (IMAGES, gzip.compress(WHOLE)[:-9], "must be a whole gzip file"),
    "magic": (IMAGES, idx(np.zeros((23, 28, 28), np.int8), code=9), "that begin with 00000903"),
    "axes": (LABELS, idx(np.zeros((12, 1), np.uint8)), "that begin with 00000802"),
    "header": (IMAGES, gzip.compress(WHOLE[:13]), "got 13 bytes"),
    "short": (IMAGES, gzip.compress(WHOLE[:-1]), "got 18047 bytes"),
    "long": (IMAGES, gzip.compress(WHOLE + b"0"), "got 18049 bytes"),
    "side": (IMAGES, idx(np.zeros((23, 28, 27), np.uint8)), r"got shape \(23, 28, 27\)"),
    "counts": (LABELS, idx(np.zeros(11, np.uint8)), r"got shape \(12, 28, 28\) and 11 labels"),
    "class": (LABELS, idx(np.full(12, 10, np.uint8)), "labels up to 10"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named(source, damage):
    name, content, message = DAMAGE[damage]
    (source / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_fashion(source)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
