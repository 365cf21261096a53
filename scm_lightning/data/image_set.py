# SPDX-License-Identifier: Apache-2.0
"""A data set in memory, written as a folder of shards with an index.

The folder appears complete or not at all. Processes that prepare the same folder at once all
succeed: the first to finish puts it in its place, the others find it there and drop their own.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import track

from scm_lightning.data.index import INDEX_FILE, ShardIndex, Split
from scm_lightning.data.location import folder_to_write
from scm_lightning.data.shards import Array, write_shard
from scm_lightning.whole_files import scratch_folder


@dataclass(frozen=True)
class ImageSet:
    """Images in memory, with what an index says of them.

    Args:
        splits: images, (N, C, H, W) in pixel units, and labels, (N,), for `train` and `heldout`.
        num_classes: number of classes.
        max_value: the pixel value shown as white.
        source: where the data come from.
        class_names: names of the classes; none if they go by their numbers.
    """

    splits: Mapping[str, tuple[Array, Array]]
    num_classes: int
    max_value: float
    source: str
    class_names: list[str] = field(default_factory=list)


def prepare_shards(
    folder: Path | str, load: Callable[[], ImageSet], samples_per_shard: int
) -> None:
    """Write a data set as shards with an index, unless they are there.

    Args:
        folder: where to. Its parents are made.
        load: reads the data set; not called if the folder is complete.
        samples_per_shard: samples in every file but a split's last.

    Raises:
        ValueError: if something else is in the place of the folder, or it is a command or address.
    """
    folder = folder_to_write(folder)
    if (folder / INDEX_FILE).is_file():
        return
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(
            f"{folder} must be a new folder or one with {INDEX_FILE}, got other files; give "
            "another root, or remove it"
        )
    images = load()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent, f".{folder.name}-") as scratch:
        scratch.chmod(0o755)
        _write(images, scratch, samples_per_shard)
        _put_in_place(scratch, folder)


def _write(images: ImageSet, folder: Path, samples_per_shard: int) -> None:
    splits = {}
    for name, (pixels, labels) in images.splits.items():
        starts = range(0, len(pixels), samples_per_shard)
        shards = []
        # Closed at once: rich waits for itself if its thread collects a bar that was left half-way.
        with closing(track(starts, f"writing {name} shards")) as shown:  # type: ignore[type-var]
            for number, start in enumerate(shown):
                rows = range(start, min(start + samples_per_shard, len(pixels)))
                samples = ((f"{row:08d}", pixels[row], int(labels[row])) for row in rows)
                shards.append(write_shard(folder / f"{name}-{number:06d}.tar", samples))
        splits[name] = Split(shards)
    train = images.splits["train"][0]
    ShardIndex(
        splits=splits,
        shape=train.shape[1:],
        dtype=str(train.dtype),
        num_classes=images.num_classes,
        class_names=images.class_names,
        mean=train.mean(axis=(0, *range(2, train.ndim)), dtype=np.float64).tolist(),
        std=train.std(axis=(0, *range(2, train.ndim)), dtype=np.float64).tolist(),
        max_value=images.max_value,
        source=images.source,
    ).write(folder)


def _put_in_place(scratch: Path, folder: Path) -> None:
    try:
        os.replace(scratch, folder)
    except OSError:  # replacing a folder that is not empty: another process may have been faster
        if not (folder / INDEX_FILE).is_file():
            raise
