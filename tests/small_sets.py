# SPDX-License-Identifier: Apache-2.0
"""Small sets in memory, written as a folder of shards: of any shape, type and number of classes."""

from pathlib import Path
from typing import Any

import numpy as np

from scm_lightning.data import Sample, ShardIndex, Split, StoredCondition, write_shard
from scm_lightning.text import Words


def write_set(
    folder: Path,
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    num_classes: int,
    max_value: float,
    samples_per_shard: int,
    words: Words | None = None,
) -> None:
    """Write a folder of shards with its index.

    Args:
        folder: where to; one that has an index is left as it is.
        splits: arrays, (N, ...), and labels, (N,), for `train` and `heldout`.
        num_classes: number of classes.
        max_value: the pixel value shown as white.
        samples_per_shard: samples in every file but a split's last.
        words: encoder of the captions, if there are to be some.
    """
    if (folder / "shards.json").is_file():
        return
    written = {name: [] for name in splits}
    for name, (arrays, labels) in splits.items():
        for number, start in enumerate(range(0, len(arrays), samples_per_shard)):
            rows = range(start, min(start + samples_per_shard, len(arrays)))
            samples = (
                Sample(arrays[row], int(labels[row]), f"{row:08d}", *_captioned(row, words))
                for row in rows
            )
            written[name].append(write_shard(folder / f"{name}-{number:06d}.tar", samples))
    train = splits["train"][0]
    axes = (0, *range(2, train.ndim))
    ShardIndex(
        splits={name: Split(shards) for name, shards in written.items()},
        shape=train.shape[1:],
        dtype=str(train.dtype),
        num_classes=num_classes,
        class_names=[],
        mean=train.mean(axis=axes, dtype=np.float64).tolist(),
        std=train.std(axis=axes, dtype=np.float64).tolist(),
        max_value=max_value,
        source="a test",
        conditions={} if words is None else {"text": _declared(words)},
        captions=words is not None,
    ).write(folder)


def _captioned(row: int, words: Words | None) -> tuple[Any, ...]:
    """Tokens and caption of a sample."""
    if words is None:
        return ()
    caption = f"{('red', 'blue', 'green')[row % 3]} number {row}"
    return {"text": words.encode([caption])[0].astype(np.float16)}, caption


def _declared(words: Words) -> StoredCondition:
    shape = (words.max_length, words.width)
    return StoredCondition(shape, "float16", True, "", words.name, words.sha256)
