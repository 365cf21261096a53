# SPDX-License-Identifier: Apache-2.0
"""A small set with conditions of every kind, where each says which sample it is of."""

from pathlib import Path

import numpy as np
import torch

from scm_lightning.data import (
    Degradation,
    Reading,
    Sample,
    ShardIndex,
    Split,
    StoredCondition,
    write_null,
    write_shard,
)

SHAPE = (3, 4, 6)
LONGEST, WIDTH = 3, 5
NUM_TRAIN, NUM_HELDOUT, PER_SHARD = 22, 7, 6
STORED = {
    "text": StoredCondition((LONGEST, WIDTH), "float16", varying=True, encoder="a test"),
    "image": StoredCondition(SHAPE, "uint8"),
    "outline": StoredCondition((1, *SHAPE[1:]), "uint8"),
    "depth": StoredCondition((1, *SHAPE[1:]), "float32"),
    "age": StoredCondition((), "float32"),
    "ids": StoredCondition((2,), "int64"),
}
NULL = np.full((2, WIDTH), -1, np.float16)


def sample_of(number: int, first: int = 0) -> Sample:
    """Sample of a number; the text of number n has n mod 4 tokens, each n everywhere."""
    random = np.random.default_rng(number)
    picture = random.integers(0, 256, SHAPE).astype(np.uint8)
    conditions = {
        "text": np.full((number % 4, WIDTH), number, np.float16),
        "image": picture,
        "outline": picture[:1],
        "depth": picture[1:2].astype(np.float32),
        "age": np.array(number / 2, np.float32),
        "ids": np.array([number, -number]),
    }
    return Sample(picture, number % 3, f"{number - first:08d}", conditions, f"ein Bär, {number}")


def write_conditions(folder: Path) -> None:
    """Write the set; held-out samples have numbers from 100."""
    splits = {}
    for name, first, size in [("train", 0, NUM_TRAIN), ("heldout", 100, NUM_HELDOUT)]:
        samples = [sample_of(first + n, first) for n in range(size)]
        splits[name] = Split(
            [
                write_shard(folder / f"{name}-{start:06d}.tar", samples[start : start + PER_SHARD])
                for start in range(0, size, PER_SHARD)
            ]
        )
    null = write_null(folder, "text", NULL)
    text = StoredCondition((LONGEST, WIDTH), "float16", True, null, "a test")
    statistics = ([127.5] * 3, [127.5] * 3)
    ShardIndex(
        *(splits, SHAPE, "uint8", 3, [], *statistics, 255.0, "a test"),
        conditions={**STORED, "text": text},
        captions=True,
    ).write(folder)


def data_of(folder, mapped=True, process=(0, 1), **options):
    """The data module of one process of a run, set up."""
    from scm_lightning.data import Shards  # needs lightning, which a spawned worker does not

    reading = Reading(mapped=mapped, shuffle_buffer=5, start_method=options.pop("start", None))
    options = {"batch_size": 4, "sample_batch_size": 3, **options}
    data = Shards(0.5, str(folder), reading=reading, **options)
    data._process = lambda: process
    data.setup("fit")
    return data


class Hole(Degradation):
    """The image without some of its pixels, and which ones there are."""

    def shapes(self, data_shape):
        return {"rest": data_shape, "kept": (1, *data_shape[1:])}

    def __call__(self, data, generators):
        drawn = [torch.rand(1, *data.shape[2:], generator=each) for each in generators]
        kept = (torch.stack(drawn) < 0.5).float()
        return {"rest": data * kept, "kept": kept}
