# SPDX-License-Identifier: Apache-2.0
"""Training batches over ranks and workers: complete, disjoint, reproducible, exact to resume."""

import http.server
import itertools
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scm_lightning.data import Reading, Sample, ShardIndex, Shards, Split, write_shard
from scm_lightning.data.location import place_of

SIZES = (7, 1, 30, 11, 23)  # uneven shards, fewer than some runs have workers
NUM_SAMPLES = sum(SIZES)
BATCH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sample i is the number i, twice."""
    folder, first, shards = tmp_path_factory.mktemp("uneven"), 0, []
    for number, size in enumerate(SIZES):
        values = range(first, first + size)
        samples = [Sample(np.full((1, 2), v, np.float32), v % 3, f"{v:08d}") for v in values]
        shards.append(write_shard(folder / f"train-{number:06d}.tar", samples))
        first += size
    heldout = [Sample(np.zeros((1, 2), np.float32), 0, "0")]
    splits = {
        "train": Split(shards),
        "heldout": Split([write_shard(folder / "heldout-000000.tar", heldout)]),
    }
    everything = np.arange(NUM_SAMPLES)
    mean, std = [float(everything.mean())], [float(everything.std())]
    ShardIndex(splits, (1, 2), "float32", 3, [], mean, std, 1.0, "a test").write(folder)
    return folder


def loader(folder, mapped, rank=0, world_size=1, num_workers=0, seed=0, batch=BATCH, **reading):
    """The loader of one process of a run."""
    options = Reading(mapped=mapped, **{"shuffle_buffer": 9, **reading})
    data = Shards(
        0.7, str(folder), batch, num_workers=num_workers, shuffle_seed=seed, reading=options
    )
    data._process = lambda: (rank, world_size)
    data.setup("fit")
    return data.train_dataloader()


def numbers(batches):
    return [batch.indices.tolist() for batch in batches]


def take(stream, count):
    """Batches from a loader, over the ends of its epochs."""
    batches = []
    while len(batches) < count:
        for batch in stream:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


def first_pass(processes, num_workers):
    """Samples of the first pass: what every lane says before it comes to its second.

    Args:
        processes: numbers of the batches of every process, more than a pass.
        num_workers: loader workers of a process.
    """
    seen, lanes = [], max(num_workers, 1)
    parts = len(processes) * lanes
    for rank, batches in enumerate(processes):
        for lane in range(lanes):
            part = rank * lanes + lane
            length = (part + 1) * NUM_SAMPLES // parts - part * NUM_SAMPLES // parts
            seen += [index for batch in batches[lane::lanes] for index in batch][:length]
    return seen


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mapped", [True, False])
def test_two_processes_with_two_workers(folder, mapped, start_method):
    """Every sample once, again from the seed, and from the middle of a pass on."""
    options = {"mapped": mapped, "num_workers": 2, "start_method": start_method, "world_size": 2}
    runs = [loader(folder, rank=rank, **options) for rank in range(2)]
    early = [take(run, 5) for run in runs]
    state = runs[1].state_dict()
    late = [take(run, 17) for run in runs]
    if mapped:  # 2 x 9 x 4 = 72 samples in one pass
        batches = [numbers(a + b)[:9] for a, b in zip(early, late, strict=True)]
        seen = list(itertools.chain(*itertools.chain(*batches)))
        assert len(seen) == NUM_SAMPLES
    else:
        together = [numbers(a + b) for a, b in zip(early, late, strict=True)]
        seen = first_pass(together, num_workers=2)
    assert sorted(seen) == list(range(NUM_SAMPLES))
    resumed = loader(folder, rank=1, **options)
    resumed.load_state_dict(state)
    for x, y in zip(take(resumed, 9), late[1], strict=False):
        assert torch.equal(x.x0, y.x0)
        assert torch.equal(x.labels, y.labels)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_spawned_worker_hands_out_the_same(folder, mapped):
    """Everything that it needs travels to it."""
    runs = [
        loader(folder, mapped, num_workers=num, start_method=how)
        for num, how in ((0, None), (1, "spawn"))
    ]
    for x, y in zip(*(take(run, 5) for run in runs), strict=True):
        assert torch.equal(x.x0, y.x0)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (3, 0), (1, 7), (4, 3)])
def test_more_workers_than_shards_share_a_pass(folder, world_size, num_workers):
    """Streamed; 4 x 3 lanes for five shards."""
    runs = [loader(folder, False, rank, world_size, num_workers) for rank in range(world_size)]
    enough = max(num_workers, 1) * (NUM_SAMPLES // BATCH // world_size + 2)
    batches = [numbers(take(run, enough)) for run in runs]
    assert sorted(first_pass(batches, num_workers)) == list(range(NUM_SAMPLES))
    assert len({len(run) for run in runs}) == 1
    assert len(runs[0]) == max(NUM_SAMPLES // (BATCH * world_size), 1)


def test_the_joined_batch_of_mapped_data_does_not_depend_on_processes_and_workers(folder):
    alone = numbers(take(loader(folder, True, batch=12), 11))
    for world_size, workers in [(2, 0), (3, 2)]:
        batch = 12 // world_size
        ranks = range(world_size)
        runs = [loader(folder, True, rank, world_size, workers, batch=batch) for rank in ranks]
        parts = [numbers(take(run, 11)) for run in runs]
        joined = [list(itertools.chain(*together)) for together in zip(*parts, strict=True)]
        assert joined == alone


def test_mapped_data_go_on_with_another_number_of_processes(folder):
    """Five batches of two processes, then one: the samples behind those ten."""
    alone = numbers(take(loader(folder, True, batch=8), 12))
    run = loader(folder, True, rank=0, world_size=2)
    take(run, 5)
    resumed = loader(folder, True, batch=8)
    resumed.load_state_dict(run.state_dict())
    assert numbers(take(resumed, 7)) == alone[5:]


def test_other_processes_of_a_stream_are_announced(folder, caplog):
    state = loader(folder, False, world_size=2).state_dict()
    loader(folder, False).load_state_dict(state)
    assert "streamed data continue in another order" in caplog.text


@pytest.mark.parametrize("mapped", [True, False])
def test_passes_and_seeds_differ(folder, mapped):
    one = loader(folder, mapped, batch=NUM_SAMPLES)
    first, second = numbers(take(one, 2))
    (other,) = numbers(take(loader(folder, mapped, batch=NUM_SAMPLES, seed=1), 1))
    assert sorted(first) == sorted(second) == sorted(other)
    assert first != second != other != first


def test_a_stream_is_shuffled_within_its_buffer_only(folder):
    """With a buffer of one, the shards' own order shows."""
    (order,) = numbers(take(loader(folder, False, batch=NUM_SAMPLES, shuffle_buffer=1), 1))
    jumps = sum(b != a + 1 for a, b in itertools.pairwise(order))
    assert 1 <= jumps < len(SIZES)
    (order,) = numbers(take(loader(folder, False, batch=NUM_SAMPLES), 1))
    assert sum(b != a + 1 for a, b in itertools.pairwise(order)) > NUM_SAMPLES // 2


def test_samples_are_what_their_numbers_say(folder):
    """Value, class and key of sample i."""
    for mapped in (True, False):
        data = Shards(0.7, str(folder), 5, reading=Reading(mapped=mapped))
        data.setup("fit")
        x0, labels, indices, *_ = next(iter(data.train_dataloader()))
        arrays = data.index.data_to_arrays(x0, 0.7)
        assert arrays[:, 0, 0].round().long().tolist() == indices.tolist()
        assert torch.equal(labels, indices % 3)
    keys = data.keys(torch.tensor([0, 7, 8, NUM_SAMPLES - 1]))
    assert keys == [
        "train-000000.tar/00000000",
        "train-000001.tar/00000007",
        "train-000002.tar/00000008",
        "train-000004.tar/00000071",
    ]


def test_an_epoch_is_made_of_whole_steps(folder):
    """72 samples in batches of 4 are 18; in steps of 5 batches, 15; in steps of 20, one."""
    for batches_per_step, expected in [(1, 18), (5, 15), (20, 20)]:
        data = Shards(0.7, str(folder), BATCH)
        data.trainer = SimpleNamespace(
            global_rank=0, world_size=1, accumulate_grad_batches=batches_per_step
        )
        data.setup("fit")
        assert len(data.train_dataloader()) == expected


def test_too_few_samples_for_the_lanes_are_refused(folder):
    with pytest.raises(ValueError, match="72 samples are too few for 9 processes with 9 loader"):
        loader(folder, False, world_size=9, num_workers=9)


def test_places(folder):
    assert place_of("a/b", "shards.json") == "a/b/shards.json"
    assert place_of("https://h/x/", "a.tar") == "https://h/x/a.tar"
    assert place_of("pipe:cat /d/{name}", "a.tar") == "pipe:cat /d/a.tar"
    for name in ("../a", "/etc/passwd", "pipe:ls", "a b", "", "a;ls"):
        with pytest.raises(ValueError, match="must have plain names"):
            place_of("a", name)


def test_shards_from_a_command_and_from_a_web_server(folder):
    """The same batches as from the folder."""
    expected = numbers(take(loader(folder, False), 6))
    assert numbers(take(loader(f"pipe:cat {folder}/{{name}}", False), 6)) == expected
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=folder)) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{web.server_port}"
        assert numbers(take(loader(place, None), 6)) == expected
        with pytest.raises(ValueError, match=r"nothing/shards\.json cannot be read"):
            loader(f"{place}/nothing", False)
        assert numbers(take(loader(place, True), 6)) == numbers(take(loader(folder, True), 6))
        web.shutdown()
