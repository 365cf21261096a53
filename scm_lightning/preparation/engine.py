# SPDX-License-Identifier: Apache-2.0
r"""Writing of a folder of shards from a source of images: the engine of `scm prepare`.

    source --workers--> images --content--> arrays --one process--> shards, records, index

Whatever the number of workers and however often the process was ended, the files are the same, byte
for byte: the plan fixes order, keys and batches, one process writes, and sums are merged exactly.

    mean = sum x / n     std = sqrt(sum x^2 / n - mean^2)     per channel of the training split
    mean = M / 2         std = M / 4                          of the paper's pixels, M their largest

With the second, x0 = sigma_data (pixels - mean) / std is in [-1, 1] for sigma_data = 1/2. The
paper's mean and std of latents are in `latent_content.py`.
Source: the normalization to [-1, 1] is that of arXiv 2410.11081, Appendix G.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from scm_lightning.data.index import Shard, ShardIndex, Split
from scm_lightning.data.location import folder_to_write
from scm_lightning.data.prompts import TEXT
from scm_lightning.data.shards import Sample, write_shard
from scm_lightning.data.stored_conditions import StoredCondition
from scm_lightning.preparation.content import Moments, merged
from scm_lightning.preparation.folder import (
    PreparationFolder,
    Record,
    begun,
    read_account,
)
from scm_lightning.preparation.latent_content import paper_statistics
from scm_lightning.preparation.loader import ImageBatches, LoadedImages, load_images
from scm_lightning.preparation.plan import (
    HELDOUT,
    MIN_HELDOUT,
    TRAIN,
    Plan,
    PlannedShard,
    Recipe,
)
from scm_lightning.preparation.space import explained_errors, needed_bytes, refuse_small_disk
from scm_lightning.saying import counted

NAMED = 10
"""Unreadable images that a message names; the others are counted."""


@dataclass(frozen=True)
class Preparation:
    """Outcome of a preparation.

    Args:
        index: index of the folder.
        unreadable: images that were left out, each with the reason.
        num_images: images that were loaded this time; 0 if the folder was complete.
        seconds: time that they took.
    """

    index: ShardIndex
    unreadable: list[str]
    num_images: int
    seconds: float


def prepare(
    recipe: Recipe, folder: Path | str, num_workers: int = 0, max_unreadable: int = 0
) -> Preparation:
    """Write a folder of shards, continue one, or find it complete.

    Args:
        recipe: what is made of which source.
        folder: folder to write. Its parents are made.
        num_workers: processes that load images; with 0 this one does.
        max_unreadable: images that are left out at most if they cannot be read.

    Raises:
        ValueError: if the folder holds something else or cannot be written, or more images cannot
            be read. Finished shards are kept, and the same call continues.
    """
    started, folder, plan = time.monotonic(), folder_to_write(folder), recipe.plan()
    unreadable = read_account(folder, plan)
    if unreadable is not None:
        return Preparation(ShardIndex.read(folder), unreadable, 0, 0.0)
    needed = needed_bytes(plan.shards, recipe)
    with explained_errors(folder, needed, num_workers), begun(folder, plan) as work:
        records = [work.record_of(planned) for planned in plan.shards]
        missing = [n for n, record in enumerate(records) if record is None]
        shards = [plan.shards[number] for number in missing]
        refuse_small_disk(folder, shards, recipe)
        for number, record in zip(missing, _write(recipe, work, shards, num_workers), strict=True):
            records[number] = record
        done = [record for record in records if record is not None]
        unreadable = [line for record in done for line in record.unreadable]
        conditions = {TEXT: recipe.captions.declared(folder)} if recipe.captions else {}
        # Refuses first what no max_unreadable would mend.
        index = _index(recipe, plan, done, conditions)
        _refuse_unreadable(unreadable, max_unreadable)
        work.finish(index, unreadable)
    num_images = sum(len(planned.items) for planned in shards)
    return Preparation(index, unreadable, num_images, time.monotonic() - started)


def _write(
    recipe: Recipe, work: PreparationFolder, shards: Sequence[PlannedShard], num_workers: int
) -> Iterator[Record]:
    """Write shards in their order, and keep a record of each."""
    content, size = recipe.content, recipe.content.batch_size
    batches = [
        planned.items[start : start + size]
        for planned in shards
        for start in range(0, len(planned.items), size)
    ]
    images = ImageBatches(recipe.source, recipe.transform, content.image_shape, batches)
    # Closed at once: what is left half-way keeps its workers.
    with (
        closing(load_images(images, min(num_workers, len(batches)))) as loaded,
        counted("preparing", sum(len(batch) for batch in batches)) as advance,
    ):
        for planned in shards:
            record = _write_shard(planned, loaded, recipe, work.folder)
            work.keep(planned, record)
            advance(len(planned.items))
            yield record


def _write_shard(
    planned: PlannedShard, loaded: Iterator[LoadedImages], recipe: Recipe, folder: Path
) -> Record:
    """Write one shard of the images that come next."""
    content, items, captions = recipe.content, recipe.source.items, recipe.captions
    moments: list[Moments] = []
    unreadable: list[str] = []

    def samples() -> Iterator[Sample]:
        for start in range(0, len(planned.items), content.batch_size):
            batch = next(loaded)
            unreadable.extend(batch.unreadable)
            if not batch.positions:
                continue
            stored = content.encode(batch.images)
            moments.append(content.moments(stored))
            positions = [start + offset for offset in batch.positions]
            numbers = [planned.items[position] for position in positions]
            encoded = captions.encode(numbers) if captions else []
            for turn, (position, number) in enumerate(zip(positions, numbers, strict=True)):
                sample = Sample(stored[turn], items[number].label, planned.key(position))
                if captions:
                    caption = captions.texts[number]
                    sample = sample._replace(conditions={TEXT: encoded[turn]}, caption=caption)
                yield sample

    written = samples()
    first = next(written, None)
    shard = first and write_shard(folder / planned.name, chain([first], written))
    return Record(shard, merged(moments), unreadable)


def _index(
    recipe: Recipe,
    plan: Plan,
    records: Sequence[Record],
    conditions: Mapping[str, StoredCondition],
) -> ShardIndex:
    """The index of the shards that were written.

    Raises:
        ValueError: if too few images could be read, or a channel never changes.
    """
    written: dict[str, list[tuple[Shard, Moments]]] = {TRAIN: [], HELDOUT: []}
    for planned, record in zip(plan.shards, records, strict=True):
        if record.shard is not None:
            written[planned.split].append((record.shard, record.moments))
    splits = {name: Split([shard for shard, _ in found]) for name, found in written.items()}
    num_train, num_heldout = splits[TRAIN].num_samples, splits[HELDOUT].num_samples
    if num_train < 1 or num_heldout < MIN_HELDOUT:
        lines = [line for each in records for line in each.unreadable]
        left_out = f"; {len(lines)} are not: {_named(lines)}" if lines else ""
        raise ValueError(
            f"at least 1 image to train on and {MIN_HELDOUT} held out must be readable, got "
            f"{num_train} and {num_heldout} of {recipe.source.description}; give more images"
            f"{left_out}"
        )
    source = recipe.source
    means, stds = _statistics(recipe, merged([moments for _, moments in written[TRAIN]]))
    return ShardIndex(
        splits=splits,
        shape=recipe.content.shape,
        dtype=recipe.content.dtype,
        num_classes=len(source.class_names),
        class_names=list(source.class_names),
        mean=means,
        std=stds,
        max_value=source.max_value,
        source=source.description,
        source_checksum=plan.digest,
        num_unreadable=sum(len(each.unreadable) for each in records),
        latents=recipe.content.latents,
        conditions=conditions,
        captions=recipe.captions is not None,
    )


def _statistics(recipe: Recipe, total: Moments) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel that the index is to have."""
    if recipe.normalize == "paper":
        return paper_statistics(recipe.content.shape, recipe.content.latents)
    num_channels = len(total.sums)
    if recipe.normalize == "range":
        white = recipe.source.max_value
        return [white / 2] * num_channels, [white / 4] * num_channels
    means = [value / total.num for value in total.sums]
    variances = [
        max(0.0, square / total.num - mean**2)
        for square, mean in zip(total.squares, means, strict=True)
    ]
    return means, [math.sqrt(variance) for variance in variances]


def _refuse_unreadable(unreadable: Sequence[str], most: int) -> None:
    if len(unreadable) > most:
        raise ValueError(
            f"at most {most} images may be unreadable, got {len(unreadable)}: "
            f"{_named(unreadable)}. "
            f"With max_unreadable {len(unreadable)} the same command leaves them out and finishes "
            "at once; to replace them instead, remove the folder and prepare it again"
        )


def _named(unreadable: Sequence[str]) -> str:
    """The first of them, with their reasons, and how many others."""
    others = f"; and {len(unreadable) - NAMED} others" if len(unreadable) > NAMED else ""
    return "; ".join(unreadable[:NAMED]) + others
