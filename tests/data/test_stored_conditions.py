# SPDX-License-Identifier: Apache-2.0
"""Conditions by name: as they were written, at every sample, wherever a run continues."""

import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from condition_sets import (
    LONGEST,
    NULL,
    NUM_HELDOUT,
    NUM_TRAIN,
    SHAPE,
    STORED,
    WIDTH,
    Hole,
    data_of,
    sample_of,
    write_conditions,
)

from scm_lightning.data import Prompt, RequestStream, ShardIndex, Shards, read_shard
from scm_lightning.data.requests import Given

NAMES = ["text", "text_mask", "image", "outline", "depth", "age", "ids"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions") / "shards"
    write_conditions(folder)
    return folder


def take(loader, count):
    """Batches over the ends of epochs."""
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    return list(itertools.islice(endless, count))


def equal(batches, others):
    for one, other in zip(batches, others, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.x0, other.x0)
        assert one.conditions.keys() == other.conditions.keys()
        for name, x in one.conditions.items():
            assert torch.equal(x, other.conditions[name]), name


def check_rows(conditions, numbers):
    """Every sample's conditions are those that were written of its number."""
    for row, number in enumerate(numbers):
        written = sample_of(number).conditions
        length = number % 4
        text, mask = conditions["text"][row], conditions["text_mask"][row]
        assert mask.tolist() == [True] * length + [False] * (LONGEST - length)
        assert text.dtype == torch.float32
        assert bool((text[mask] == number).all())
        assert not text[~mask].any()
        for name in ("image", "outline"):
            back = (conditions[name][row] + 1) * 127.5
            assert np.array_equal(back.round().numpy(), written[name])
        assert float(conditions["age"][row]) == number / 2
        assert conditions["ids"][row].tolist() == [number, -number]
        assert conditions["ids"].dtype == torch.int64


def test_a_shard_gives_back_what_was_written(folder):
    index = ShardIndex.read(folder)
    read = [
        sample
        for shard in index.splits["train"].shards
        for sample in read_shard(str(folder / shard.name), shard, index.conditions, True)
    ]
    assert len(read) == NUM_TRAIN
    for number, sample in enumerate(read):
        written = sample_of(number)
        assert (sample.label, sample.key, sample.caption) == written[1:3] + written[4:]
        for name, array in written.conditions.items():
            assert sample.conditions[name].dtype == array.dtype
            assert np.array_equal(sample.conditions[name], array)


def test_the_index_says_what_there_is(folder):
    index = ShardIndex.read(folder)
    assert list(index.conditions) == list(STORED)
    assert index.conditions["image"] == STORED["image"]
    assert index.conditions["text"].encoder == "a test"
    sizes = 3 * 5 * 2 + 3 * 24 + 24 + 24 * 4 + 4 + 2 * 8
    assert index.num_stored_bytes == NUM_TRAIN * (3 * 24 + sizes)


def test_an_index_from_before_conditions_reads(folder, tmp_path):
    fields = json.loads((folder / "shards.json").read_text())
    del fields["conditions"], fields["captions"]
    (tmp_path / "shards.json").write_text(json.dumps(fields))
    index = ShardIndex.read(tmp_path)
    assert (index.conditions, index.captions) == ({}, False)


@pytest.mark.parametrize("mapped", [True, False])
def test_batches_hold_the_conditions_of_their_samples(folder, mapped):
    data = data_of(folder, mapped)
    for batch in take(data.train_dataloader(), 12):
        assert list(batch.conditions) == NAMES
        assert {n: (4, *shape) for n, shape in data.condition_shapes.items()} == {
            name: tuple(x.shape) for name, x in batch.conditions.items()
        }
        check_rows(batch.conditions, batch.indices.tolist())
        assert list(batch.nulls) == ["text", "text_mask"]
        assert batch.nulls["text"].tolist() == [[-1.0] * WIDTH] * 2 + [[0.0] * WIDTH]
        assert batch.nulls["text_mask"].tolist() == [True, True, False]


@pytest.mark.parametrize("mapped", [True, False])
def test_workers_hand_out_the_same_and_continue_to_the_bit(folder, mapped):
    """With lengths that vary, flips and what a degradation draws."""
    options = {"degradation": Hole(), "horizontal_flip": True}
    first, continued = (
        data_of(folder, mapped, **options, num_workers=2, start="fork").train_dataloader()
        for _ in range(2)
    )
    batches = take(first, 4)
    state = first.state_dict()
    later = take(first, 5)
    continued.load_state_dict(state)
    equal(take(continued, 5), later)
    if mapped:
        equal(take(data_of(folder, mapped, **options).train_dataloader(), 4), batches)


def test_a_spawned_worker_hands_out_the_same(folder):
    """All that it needs travels to it, null and degradation too."""
    options = {"degradation": Hole(), "horizontal_flip": True}
    plain = take(data_of(folder, False, **options).train_dataloader(), 3)
    spawned = data_of(folder, False, **options, num_workers=1, start="spawn").train_dataloader()
    equal(take(spawned, 3), plain)
    mapped = data_of(folder, True, **options).train_dataloader().batches
    sent = pickle.loads(pickle.dumps(mapped))
    equal([sent[number] for number in range(8)], [mapped[number] for number in range(8)])


def test_the_joined_batch_does_not_depend_on_processes(folder):
    alone = take(data_of(folder, degradation=Hole()).train_dataloader(), 6)
    ranks = [
        data_of(folder, process=(rank, 2), batch_size=2, degradation=Hole()).train_dataloader()
        for rank in range(2)
    ]
    for whole, *parts in zip(alone, *(take(rank, 6) for rank in ranks), strict=True):
        for name, x in whole.conditions.items():
            assert torch.equal(x, torch.cat([part.conditions[name] for part in parts])), name


def test_some_of_the_conditions_or_none(folder):
    some = data_of(folder, conditions=["age", "text"])
    batch = next(iter(some.train_dataloader()))
    assert list(batch.conditions) == ["text", "text_mask", "age"]
    none = data_of(folder, conditions=[])
    batch, order = next(iter(none.train_dataloader())), next(iter(none.val_dataloader()))
    assert batch.conditions == batch.nulls == order.conditions == {}
    assert not order.prompts
    assert order.labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"only text, image, .*, got words;") as refused:
        data_of(folder, conditions=["text", "words"])
    assert "\n" not in str(refused.value)


def test_members_that_are_not_asked_for_are_not_decoded(folder, monkeypatch):
    decoded = []
    monkeypatch.setattr("scm_lightning.data.shards.picture_of", lambda c, shape: decoded.append(c))
    next(iter(data_of(folder, conditions=["text"]).train_dataloader()))
    assert not decoded


def test_memory_holds_no_more_than_there_is(folder):
    """Of 22 texts of up to 3 tokens: 0 + 1 + 2 + 3 + 0 ..."""
    split = data_of(folder).train_dataloader().batches.split
    held = split.conditions["text"]
    assert held.values.nbytes == sum(n % 4 for n in range(NUM_TRAIN)) * WIDTH * 2
    assert split.conditions["image"].values.nbytes == NUM_TRAIN * 72


def orders(folder, world_size=1, **options):
    """Orders of all processes, joined by number."""
    loaders = [
        data_of(folder, process=(rank, world_size), **options).val_dataloader()
        for rank in range(world_size)
    ]
    return [order for turn in zip(*loaders, strict=True) for order in turn]


def test_orders_have_the_conditions_of_held_out_samples_in_turn(folder):
    for order in orders(folder, num_val_samples=17):
        numbers = [100 + i % NUM_HELDOUT for i in order.indices.tolist()]
        check_rows(order.conditions, numbers)
        assert order.labels.tolist() == [n % 3 for n in numbers]
        assert order.prompts == [f"ein Bär, {n}" for n in numbers]
        assert tuple(order.shape) == SHAPE
        assert order.nulls["text"].shape == (LONGEST, WIDTH)


@pytest.mark.parametrize("world_size", [2, 3])
def test_orders_do_not_depend_on_processes(folder, world_size):
    """Every process has as many; empty ones at the end have conditions of no sample."""
    options = {"num_val_samples": 10, "degradation": Hole()}
    alone, dealt = orders(folder, **options), orders(folder, world_size, **options)
    for one, other in zip(alone, dealt, strict=False):
        assert torch.equal(one.indices, other.indices)
        assert one.prompts == other.prompts
        for name, x in one.conditions.items():
            assert torch.equal(x, other.conditions[name]), name
    for empty in dealt[len(alone) :]:
        assert len(empty.indices) == len(empty.prompts) == len(empty.labels) == 0
        for name, x in alone[0].conditions.items():
            assert empty.conditions[name].shape == (0, *x.shape[1:])
            assert empty.conditions[name].dtype == x.dtype
    assert len(dealt) % world_size == 0


def test_prompts_stand_in_the_place_of_texts(folder):
    """Without a class; what they say nothing of is that of held-out samples."""
    data = data_of(folder)
    said = [Prompt(f"prompt {n}", {"text": np.full((n, WIDTH), n, np.float16)}) for n in (1, 2, 3)]
    given = Given(data.samples["heldout"], data.collate, said)
    for rank, order in enumerate(RequestStream(8, 3, 5, SHAPE, 0, 0, 1, given)):
        numbers = list(range(5 * rank, min(8, 5 * rank + 5)))
        assert order.prompts == [f"prompt {n % 3 + 1}" for n in numbers]
        assert order.labels.tolist() == [-1] * len(numbers)
        assert order.conditions["text_mask"].sum(1).tolist() == [n % 3 + 1 for n in numbers]
        ages = [(100 + n % NUM_HELDOUT) / 2 for n in numbers]
        assert order.conditions["age"].tolist() == ages
    for wrong in ({"words": said[0].conditions["text"]}, {"text": np.zeros((4, 5), np.float16)}):
        with pytest.raises(ValueError, match=r"conditions that the data have|at most shape"):
            Given(data.samples["heldout"], data.collate, [Prompt("wrong", wrong)])


def test_conditions_come_from_a_command_as_from_the_folder(folder):
    place = f"pipe:cat {folder}/{{name}}"
    remote, local = data_of(place, False), data_of(folder, False)
    equal(take(remote.train_dataloader(), 3), take(local.train_dataloader(), 3))
    assert torch.equal(remote.collate.nulls["text"], local.collate.nulls["text"])


def test_a_null_that_is_missing_or_changed_is_refused(folder, tmp_path):
    root = tmp_path / "shards"
    write_conditions(root)
    file = root / "null.text.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"null\.text\.npy is damaged: it does not have"):
        data_of(root)
    file.unlink()
    with pytest.raises(ValueError, match=r"null\.text\.npy cannot be read: .*; prepare"):
        data_of(root)
    assert data_of(root, conditions=["age"]).collate.nulls == {}
    assert NULL.shape == (2, WIDTH)


def test_a_hole_of_the_data_is_kept_by_its_place(folder):
    """Seen in [-1, 1]; another seed makes another."""
    batch = next(iter(data_of(folder, degradation=Hole()).train_dataloader()))
    kept = batch.conditions["kept"].expand(-1, 3, -1, -1) == 1
    rest, image = batch.conditions["rest"], batch.conditions["image"]
    assert torch.allclose(rest[kept], image[kept], atol=1e-6)
    assert not batch.conditions["rest"][~kept].any()
    order = next(iter(data_of(folder, degradation=Hole()).val_dataloader()))
    other = next(iter(data_of(folder, degradation=Hole(), sample_seed=1).val_dataloader()))
    assert torch.equal(order.conditions["image"], other.conditions["image"])
    assert not torch.equal(order.conditions["kept"], other.conditions["kept"])


def test_a_degradation_that_makes_what_the_shards_hold_is_refused(folder):
    class Again(Hole):
        def shapes(self, data_shape):
            return {"image": data_shape}

    with pytest.raises(ValueError, match="that the shards do not hold, got image; leave"):
        data_of(folder, degradation=Again())
    data_of(folder, degradation=Again(), conditions=["text"])


@pytest.mark.parametrize("mapped", [True, False])
def test_maps_and_pictures_are_mirrored_with_the_images(folder, mapped):
    data = data_of(folder, mapped, horizontal_flip=True)
    mirrored = 0
    for batch in take(data.train_dataloader(), 10):
        # x0 is sigma_data (pixels - 127.5) / 127.5, of which the picture is a copy.
        assert torch.allclose(batch.conditions["image"], batch.x0 / 0.5, atol=1e-6)
        assert torch.allclose(batch.conditions["outline"], batch.x0[:, :1] / 0.5, atol=1e-6)
        depth = batch.conditions["depth"] / 127.5 - 1
        assert torch.allclose(depth, batch.x0[:, 1:2] / 0.5, atol=1e-6)
        for row, number in enumerate(batch.indices.tolist()):
            plain = torch.from_numpy(sample_of(number).array / 127.5 - 1).float() / 2
            mirrored += not torch.allclose(batch.x0[row], plain, atol=1e-6)
            assert bool((batch.conditions["text"][row][: number % 4] == number).all())
    assert 10 < mirrored < 30


@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 6), (1, 2, 4, 3)])
def test_maps_of_another_size_are_not_mirrored_unasked(folder, tmp_path, shape):
    fields = json.loads((folder / "shards.json").read_text())
    fields["conditions"]["depth"]["shape"] = shape
    for shard in (s for split in fields["splits"].values() for s in split["shards"]):
        (tmp_path / shard["name"]).write_bytes((folder / shard["name"]).read_bytes())
    (tmp_path / "shards.json").write_text(json.dumps(fields))
    (tmp_path / "null.text.npy").write_bytes((folder / "null.text.npy").read_bytes())
    with pytest.raises(ValueError, match=r"cannot be known of depth of shape .*; leave"):
        data_of(tmp_path, horizontal_flip=True)
    data_of(tmp_path, horizontal_flip=True, conditions=["image", "age"])
    assert Shards(0.5, str(tmp_path)).horizontal_flip is False
