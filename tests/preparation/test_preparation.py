# SPDX-License-Identifier: Apache-2.0
"""From a source to shards: order, splits, statistics; the same bytes however the work was done."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from painted import SHAPE, PaintedImages, content_of, read_split, recipe

from scm_lightning.data import ShardIndex
from scm_lightning.preparation.engine import prepare
from scm_lightning.preparation.transform import ImageTransform


def test_every_image_is_in_one_split_under_its_own_class(tmp_path):
    """The images tell their number: none is lost, doubled or given another's class."""
    source = PaintedImages(53)
    prepare(recipe(source), tmp_path / "out")
    seen = Counter()
    for split in ("train", "heldout"):
        samples = read_split(tmp_path / "out", split)
        assert [sample.key for sample in samples] == [f"{n:08d}" for n in range(len(samples))]
        for sample in samples:
            number = source.number_of(sample.array)
            assert sample.label == source.items[number].label
            assert (sample.array == source.load(number).transpose(2, 0, 1)).all()
            seen[number] += 1
    assert seen == Counter(range(53))


def test_statistics_are_those_of_the_training_images(tmp_path):
    """Against numpy in float64 over all of them at once."""
    index = prepare(recipe(PaintedImages(53)), tmp_path / "out").index
    images = np.stack([sample.array for sample in read_split(tmp_path / "out", "train")])
    np.testing.assert_allclose(index.mean, images.mean(axis=(0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(index.std, images.std(axis=(0, 2, 3)), rtol=1e-13)
    assert index.shape == SHAPE
    assert (index.dtype, index.num_classes, index.num_unreadable) == ("uint8", 3, 0)


def test_range_brings_pixels_to_the_papers_interval(tmp_path):
    index = prepare(recipe(PaintedImages(53), normalize="range"), tmp_path / "out").index
    sigma_data = 0.7
    ends = (np.array([0.0, 255.0]) - index.mean[0]) * sigma_data / index.std[0]
    np.testing.assert_allclose(ends, [-2 * sigma_data, 2 * sigma_data])
    assert (index.mean, index.std) == ([127.5] * 3, [63.75] * 3)


def test_heldout_images_take_the_classes_in_turn(tmp_path):
    """Classes of 26, 18 and 9 images: as many of each until half of the smallest is taken."""
    prepare(recipe(PaintedImages(53), heldout=16), tmp_path / "out")
    labels = [sample.label for sample in read_split(tmp_path / "out", "heldout")]
    assert labels == [0, 1, 2] * 4 + [0, 1] * 2


def test_training_classes_are_mixed(tmp_path):
    """The source is sorted by class; every shard has all of them."""
    index = prepare(recipe(PaintedImages(300), samples_per_shard=60), tmp_path / "out").index
    samples = read_split(tmp_path / "out", "train")
    assert [shard.num_samples for shard in index.splits["train"].shards] == [60] * 4 + [30]
    for start in range(0, 240, 60):
        assert {sample.label for sample in samples[start : start + 60]} == {0, 1, 2}


def test_the_sources_own_split_is_kept(tmp_path):
    source = PaintedImages(53, num_heldout=7)
    prepare(recipe(source), tmp_path / "out")
    held = {source.number_of(sample.array) for sample in read_split(tmp_path / "out", "heldout")}
    assert held == {number for number in range(53) if source.items[number].split == "heldout"}
    with pytest.raises(ValueError, match="split of its own with 7 images held out, got 5"):
        prepare(recipe(source, heldout=5), tmp_path / "other")


@pytest.mark.parametrize("heldout", [0, -1, 1.5, 1, 30, 0.9, 0.01])
def test_unfit_shares_are_refused(heldout, tmp_path):
    """Fewer than 2 images are no test, more than half of a class too many."""
    with pytest.raises(ValueError, match=r"heldout|held out"):
        prepare(recipe(PaintedImages(53), heldout=heldout), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_seed_chooses(tmp_path):
    source = PaintedImages(53)
    orders = []
    for number, seed in enumerate([0, 0, 1]):
        prepare(recipe(source, seed=seed), tmp_path / str(number))
        samples = read_split(tmp_path / str(number), "train")
        orders.append([source.number_of(sample.array) for sample in samples])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) != orders[0] != orders[2]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_files_are_equal_whatever_the_number_of_workers(num_workers, tmp_path):
    source = PaintedImages(53, unreadable={5, 31})
    for folder, workers in (("alone", 0), ("together", num_workers)):
        prepare(recipe(source), tmp_path / folder, workers, max_unreadable=2)
    assert content_of(tmp_path / "alone") == content_of(tmp_path / "together")


@pytest.mark.slow
def test_sources_and_transforms_can_be_sent_to_spawned_workers(tmp_path, monkeypatch):
    """Where processes do not inherit memory, as on other systems than Linux."""
    import multiprocessing

    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr("multiprocessing.get_context", lambda: spawn)
    prepare(recipe(PaintedImages(20)), tmp_path / "spawned", 1)
    prepare(recipe(PaintedImages(20)), tmp_path / "alone", 0)
    assert content_of(tmp_path / "alone") == content_of(tmp_path / "spawned")


def test_a_complete_folder_is_left_alone(tmp_path):
    source = PaintedImages(53)
    first = prepare(recipe(source), tmp_path / "out")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    again = prepare(recipe(source), tmp_path / "out")
    assert (first.num_images, again.num_images) == (53, 0)
    assert again.index == first.index
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 4}, "seed was 0 and is 4"),
        ({"samples_per_shard": 9}, "samples_per_shard was 8 and is 9"),
        ({"transform": ImageTransform(channels=3)}, "channels was None and is 3"),
        ({"normalize": "range"}, "normalize was measured and is range"),
        ({"heldout": 6}, "heldout was None and is 6"),
        ({"source": PaintedImages(54)}, "fingerprint of the source was"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("complete", [True, False], ids=["complete", "begun"])
def test_another_plan_is_refused_with_what_differs(changed, message, complete, tmp_path):
    """Also in a folder that was only begun; what it holds stays as it is."""
    broken = PaintedImages(53, unreadable=set() if complete else {5})
    if complete:
        prepare(recipe(broken), tmp_path / "out")
    else:
        with pytest.raises(ValueError, match="unreadable"):
            prepare(recipe(broken), tmp_path / "out")
    before = content_of(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        prepare(recipe(**{"source": broken, **changed}), tmp_path / "out")
    assert content_of(tmp_path / "out") == before


def test_the_account_says_how_the_folder_was_made(tmp_path):
    source = PaintedImages(53, unreadable={5})
    index = prepare(recipe(source), tmp_path / "out", max_unreadable=1).index
    account = json.loads((tmp_path / "out" / "preparation.json").read_text())
    assert account["digest"] == index.source_checksum
    assert account["settings"]["samples_per_shard"] == 8
    assert account["unreadable"] == ["painted/5.png: too faint"]
    assert ShardIndex.read(tmp_path / "out") == index


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "file").write_text("hello")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("hello")
    for name, message in (("file", "got a file"), ("full", "other files such as letter.txt")):
        with pytest.raises(ValueError, match=message):
            prepare(recipe(PaintedImages(53)), tmp_path / name)
    assert Path(tmp_path / "full" / "letter.txt").read_text() == "hello"
    assert len(list((tmp_path / "full").iterdir())) == 1
