# SPDX-License-Identifier: Apache-2.0
"""Checksums of shards are compared before their samples serve twice."""

import itertools
import json
import shutil
import tarfile

import numpy as np
import pytest
from small_sets import write_set

from scm_lightning.data import Reading, Shards

SHAPE = (1, 4, 4)
NUM_SAMPLES, PER_SHARD, BATCH = 60, 20, 6
SHARD = "train-000001.tar"
OF_SHARD = set(range(20, 40))
MODES = [(True, 0), (False, 0), (False, 2)]
"""Mapped, and the number of loader workers."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three training shards of bytes, where most bits can change without being noticed."""
    folder = tmp_path_factory.mktemp("whole") / "shards"
    random = np.random.default_rng(0)
    arrays = random.integers(0, 256, (NUM_SAMPLES, *SHAPE)).astype(np.uint8)
    labels = np.arange(NUM_SAMPLES) % 4
    splits = {"train": (arrays, labels), "heldout": (arrays[:8], labels[:8])}
    write_set(folder, splits, 4, 255.0, PER_SHARD)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(whole, copy)
    return copy


def data_of(folder, mapped, num_workers=0, **reading):
    options = Reading(mapped=mapped, **{"shuffle_buffer": 12, **reading})
    data = Shards(0.7, str(folder), BATCH, num_workers=num_workers, reading=options)
    data.setup("fit")
    return data


def train(data, seen, passes=2):
    """Numbers of the samples that are handed out go into the list."""
    loader = data.train_dataloader()
    for _ in range(passes):
        for batch in loader:
            seen += batch.indices.tolist()


def refusal(folder, mapped, num_workers=0, **reading):
    """What is said within two passes, before any sample has been handed out twice."""
    seen = []
    with pytest.raises(ValueError, match=SHARD) as refused:
        train(data_of(folder, mapped, num_workers, **reading), seen)
    assert len(seen) == len(set(seen))
    assert not mapped or not seen
    assert "\n" not in str(refused.value)
    return str(refused.value)


def offsets(file):
    """Where in a tar file the bytes of each kind are."""
    found = {"tar header": [], "npy header": [], "array": [], "label": [], "padding": []}
    end = 0
    with tarfile.open(file) as archive:
        for member in archive:
            start, end = member.offset_data, member.offset_data + member.size
            found["tar header"] += range(start - 512, start)
            if member.name.endswith("npy"):
                found["npy header"] += range(start, start + 128)
                found["array"] += range(start + 128, end)
            else:
                found["label"] += range(start, end)
            end = start + -(-member.size // 512) * 512
            found["padding"] += range(start + member.size, end)
    found["padding"] += range(end, file.stat().st_size)
    return found


def flip(file, offset, bit=0):
    content = bytearray(file.read_bytes())
    content[offset] ^= 1 << bit
    file.write_bytes(content)


def flip_in_array(folder):
    flip(folder / SHARD, offsets(folder / SHARD)["array"][7])


def swap(folder):
    """Exchange two shards, of the same size and the same number of samples."""
    one, other = folder / SHARD, folder / "train-000002.tar"
    assert one.stat().st_size == other.stat().st_size
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def list_another_checksum(folder, checksum):
    index = json.loads((folder / "shards.json").read_text())
    index["splits"]["train"]["shards"][1]["sha256"] = checksum
    (folder / "shards.json").write_text(json.dumps(index))


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("drawn", range(14))
def test_a_bit_that_flips_anywhere_is_noticed(folder, drawn, mapped):
    random = np.random.default_rng(drawn)
    places = offsets(folder / SHARD)
    kind = list(places)[drawn % len(places)]
    flip(folder / SHARD, random.choice(places[kind]), random.integers(8))
    refusal(folder, mapped)


@pytest.mark.parametrize(("mapped", "num_workers"), MODES)
def test_what_can_be_decoded_is_compared_all_the_same(folder, mapped, num_workers):
    flip_in_array(folder)
    said = refusal(folder, mapped, num_workers)
    assert "does not have the listed SHA-256" in said


@pytest.mark.parametrize(("mapped", "num_workers"), MODES)
def test_shards_in_the_place_of_each_other_are_noticed(folder, mapped, num_workers):
    swap(folder)
    with pytest.raises(ValueError, match=r"train-00000[12]\.tar is damaged: its content does"):
        train(data_of(folder, mapped, num_workers), [])


@pytest.mark.parametrize(("mapped", "num_workers"), MODES)
def test_a_zeroed_checksum_does_not_fit(folder, mapped, num_workers):
    list_another_checksum(folder, "0" * 64)
    assert "the listed SHA-256, 000000000000..., so any of its 20" in refusal(
        folder, mapped, num_workers
    )


@pytest.mark.parametrize("mapped", [True, False])
def test_verify_never_takes_shards_as_they_are(folder, mapped):
    flip_in_array(folder)
    seen = []
    train(data_of(folder, mapped, verify="never"), seen)
    assert sorted(seen) == sorted([*range(NUM_SAMPLES)] * 2)
    refusal(folder, mapped)


@pytest.mark.parametrize("damage", [flip_in_array, swap])
def test_reference_and_held_out_data_are_compared(folder, damage):
    damage(folder)
    data = data_of(folder, True)
    with pytest.raises(ValueError, match="does not have the listed SHA-256"):
        list(data.reference_batches())
    flip(folder / "heldout-000000.tar", offsets(folder / "heldout-000000.tar")["array"][3])
    with pytest.raises(ValueError, match=r"heldout-000000\.tar is damaged: its content does"):
        list(data.heldout_batches())


@pytest.mark.parametrize("num_processes", [2, 7])
@pytest.mark.parametrize("position", [5, -5])
def test_lanes_that_share_a_shard_come_to_its_end(folder, num_processes, position):
    """Whoever serves the shard's last samples compares, within the first pass."""
    flip(folder / SHARD, offsets(folder / SHARD)["array"][position])
    runs = []
    for rank in range(num_processes):
        data = data_of(folder, False)
        data._process = lambda rank=rank: (rank, num_processes)
        data.batch_size = 1
        runs.append(iter(data.train_dataloader()))
    served = []

    def serve():
        for run in itertools.cycle(runs):
            served.extend(next(run).indices.tolist())

    with pytest.raises(ValueError, match=rf"{SHARD} is damaged: its content"):
        serve()
    assert len(served) == len(set(served)) <= NUM_SAMPLES


def test_a_shard_that_goes_on_after_its_last_sample_is_noticed(folder):
    """Also by whom the last sample that is listed would be enough."""
    file = folder / SHARD
    end = offsets(file)["padding"][-1]
    content = bytearray(file.read_bytes())
    start = len(content) - 10240 if not any(content[-10240:]) else end
    content[start : start + 512] = b"more"
    file.write_bytes(content)
    refusal(folder, False)
