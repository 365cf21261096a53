# SPDX-License-Identifier: Apache-2.0
"""A shard whose content is not what the index says is refused before it serves a second time."""

import json
import os
import shutil

import numpy as np
import pytest
from small_sets import write_set

from scm_lightning.data import Reading, Shards

SIGMA_DATA = 0.7
NUM_SAMPLES, BATCH = 12, 5
SHARD = "train-000001.tar"
NUMBERS_AT = 3 * 512 + 128
"""In a shard's first sample: tar header, label, tar header, the header of the array, 128 bytes."""
PLACES = {
    "time of the tar's member": 140,
    "padding of the tar's header": 505,
    "label": 512,
    "behind the label": 600,
    "first number": NUMBERS_AT,
    "last number": NUMBERS_AT + 119,
    "behind the array": NUMBERS_AT + 130,
    "end of the archive": -1,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three training shards of four samples, and one of held-out ones."""
    folder = tmp_path_factory.mktemp("whole") / "shards"
    arrays = np.random.default_rng(0).normal(size=(NUM_SAMPLES, 2, 3, 5)).astype(np.float32)
    splits = {"train": (arrays, np.arange(12) % 3), "heldout": (arrays[:4], np.arange(4) % 3)}
    write_set(folder, splits, 3, 1.0, 4)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "shards")


WAYS = [(True, 0), (False, 0), (False, 2)]


def train(folder, mapped, num_workers, passes=2, **reading):
    """Go through the training data."""
    data = Shards(
        SIGMA_DATA,
        str(folder),
        batch_size=BATCH,
        num_workers=num_workers,
        reading=Reading(mapped=mapped, **reading),
    )
    data.setup("fit")
    loader = data.train_dataloader()
    served = 0
    while served < passes * NUM_SAMPLES + 2 * BATCH * max(num_workers, 1):
        for batch in loader:
            served += len(batch.x0)
    return data


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(("mapped", "num_workers"), WAYS)
@pytest.mark.parametrize("place", PLACES)
def test_one_bit(folder, mapped, num_workers, place):
    flip(folder / SHARD, PLACES[place])
    with pytest.raises(ValueError, match=rf"shard .*{SHARD} is damaged") as caught:
        train(folder, mapped, num_workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mapped", "num_workers"), WAYS)
def test_shards_that_were_exchanged(folder, mapped, num_workers):
    """Of equal size, so nothing else tells them from what they should be."""
    first, second = folder / "train-000000.tar", folder / SHARD
    os.rename(first, folder / "other")
    os.rename(second, first)
    os.rename(folder / "other", second)
    with pytest.raises(ValueError, match="its content does not have the listed SHA-256"):
        train(folder, mapped, num_workers)
    train(folder, mapped, num_workers, verify="never")


def with_checksum(folder, sha256):
    file = folder / "shards.json"
    content = json.loads(file.read_text())
    content["splits"]["train"]["shards"][1]["sha256"] = sha256
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(("mapped", "num_workers"), WAYS)
def test_a_checksum_of_zeros_is_one(folder, mapped, num_workers):
    with_checksum(folder, "0" * 64)
    with pytest.raises(ValueError, match="its content does not have the listed SHA-256, 0000"):
        train(folder, mapped, num_workers)


@pytest.mark.parametrize("split", ["heldout", "reference"])
def test_other_reads(folder, split):
    """Held-out data, and the training data that samples are compared with."""
    flip(folder / ("heldout-000000.tar" if split == "heldout" else SHARD), PLACES["first number"])
    data = Shards(SIGMA_DATA, str(folder))
    data.setup("test")
    with pytest.raises(ValueError, match="is damaged: its content does not have"):
        list(getattr(data, f"{split}_batches")())


def test_a_batch_larger_than_the_data(folder):
    data = Shards(SIGMA_DATA, str(folder), batch_size=100_000)
    data.setup("fit")
    with pytest.raises(ValueError, match="batch_size must be at most the 12 training samples"):
        data.train_dataloader()


@pytest.mark.parametrize("key", ["max_value", "mean", "std"])
def test_numbers_beyond_floats(folder, key):
    file = folder / "shards.json"
    content = json.loads(file.read_text())
    content[key] = 10**400 if key == "max_value" else [10**400, 10**400]
    file.write_text(json.dumps(content))
    data = Shards(SIGMA_DATA, str(folder))
    with pytest.raises(ValueError, match=r"shards.json does not describe shards"):
        data.setup("fit")
