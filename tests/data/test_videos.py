# SPDX-License-Identifier: Apache-2.0
"""Data of five axes, such as videos: frames of one sample, on every way that images take."""

import numpy as np
import pytest
import torch
from condition_sets import Hole, data_of

from scm_lightning.data import Sample, ShardIndex, Split, StoredCondition, write_shard

SHAPE = (2, 5, 4, 6)
"""Channels, frames, rows, columns."""
NUM = 18


def sample_of(number):
    """Videos with the first frame, and a map of every frame, as conditions."""
    video = np.random.default_rng(number).integers(0, 256, SHAPE).astype(np.uint8)
    conditions = {"image": video[:1, 0], "maps": video[1:].astype(np.float32)}
    return Sample(video, number % 2, f"{number:08d}", conditions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    shard = write_shard(folder / "train-0.tar", map(sample_of, range(NUM)))
    heldout = write_shard(folder / "heldout-0.tar", map(sample_of, range(4)))
    conditions = {
        "image": StoredCondition((1, *SHAPE[2:]), "uint8"),
        "maps": StoredCondition((1, *SHAPE[1:]), "float32"),
    }
    ShardIndex(
        {"train": Split([shard]), "heldout": Split([heldout])},
        *(SHAPE, "uint8", 2, [], [127.5, 100.0], [127.5, 50.0], 255.0, "a test"),
        conditions=conditions,
    ).write(folder)
    return folder


@pytest.mark.parametrize("mapped", [True, False])
def test_videos_are_mirrored_frame_by_frame_with_their_maps(folder, mapped):
    data, mirrored = data_of(folder, mapped, horizontal_flip=True), []
    for batch in data.train_dataloader():
        assert batch.x0.shape == (4, *SHAPE)
        pixels = data.index.data_to_arrays(batch.x0, 0.5)
        for row, number in enumerate(batch.indices.tolist()):
            plain = torch.from_numpy(sample_of(number).array).float()
            is_plain = torch.allclose(pixels[row], plain, atol=1e-3)
            assert is_plain or torch.allclose(pixels[row], plain.flip(-1), atol=1e-3)
            mirrored.append(not is_plain)
        image = 127.5 * (batch.conditions["image"] + 1)
        assert torch.allclose(image, pixels[:, :1, 0], atol=1e-3)
        assert torch.allclose(batch.conditions["maps"], pixels[:, 1:], atol=1e-3)
    assert 0 < sum(mirrored) < len(mirrored)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_run_on_videos_continues_to_the_bit(folder, mapped):
    options = {"horizontal_flip": True, "degradation": Hole()}
    first, continued = (data_of(folder, mapped, **options).train_dataloader() for _ in range(2))
    batches = list(first)
    state = first.state_dict()
    continued.load_state_dict(state)
    for one, other in zip(first, continued, strict=True):
        assert torch.equal(one.x0, other.x0)
        for name, x in one.conditions.items():
            assert torch.equal(x, other.conditions[name])
    assert len(batches) == NUM // 4


def test_orders_for_videos(folder):
    data = data_of(folder, degradation=Hole(), num_val_samples=7)
    orders = list(data.val_dataloader())
    assert [len(order.indices) for order in orders] == [3, 3, 1]
    assert tuple(orders[0].shape) == SHAPE
    first = orders[1].conditions["image"][1]  # sample 4, of four: number 0 again
    assert torch.equal(first, orders[0].conditions["image"][0])
    assert orders[0].conditions["rest"].shape == (3, *SHAPE)
    seen = orders[0].conditions
    kept, image = seen["kept"][0, :, 0], seen["image"][0]
    assert torch.allclose(seen["rest"][0, :1, 0], image * kept, atol=1e-6)
