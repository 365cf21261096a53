# SPDX-License-Identifier: Apache-2.0
"""The fast path for sets that fit a disk cache: all arrays in one file, mapped into memory.

Batch i of process r in a run of R processes, of B samples each, is places

    (i R + r) B, ..., (i R + r + 1) B - 1

of an endless sequence: the samples in a new random order, pass after pass. So the joined batch of
all processes is the same for any R with the same R B, a batch does not depend on who loads it, and
a run goes on anywhere at no cost.

The cache is decoded from the shards once, `.mapped/DIGEST/` beside them; where nothing can be
written, every process decodes into its own memory. The SHA-256 of its files are in `whole.json`,
and compared whenever it is opened, a second for every GiB or two: a disk that was cut off may have
zeros where a file was.
"""

import hashlib
import json
import logging
import os
import random
import shutil
import tokenize
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from scm_lightning.data.batch import Batch
from scm_lightning.data.collate import Collate
from scm_lightning.data.faults import Faults, read_slots
from scm_lightning.data.index import INDEX_FILE, ShardIndex
from scm_lightning.data.loader import NumberedBatches
from scm_lightning.data.shards import Array, Damage
from scm_lightning.given_files import open_regular, read_regular
from scm_lightning.whole_files import flush_file, flush_folder, scratch_folder

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 22
MAX_MAPPED_BYTES = 1 << 32
"""Larger sets are streamed unless told otherwise."""
CACHE_FOLDER = ".mapped"
CACHED_FILES = ("arrays.npy", "labels.npy", "indices.npy", "damaged.json")
WHOLE_FILE = "whole.json"
"""SHA-256 of each of them."""


class MappedSplit(NamedTuple):
    """All whole samples of a split.

    Attributes:
        arrays: as stored. (N, *stored_shape).
        labels: classes. (N,) int64.
        indices: numbers in the split, without those of damaged samples. (N,) int64.
        damaged: what the others suffer from: shard, damage, and their numbers.
    """

    arrays: Array
    labels: Array
    indices: Array
    damaged: list[tuple[str, Damage, list[int]]]


class MappedBatches(NumberedBatches):
    """Batches by their number; see the module for the order.

    Args:
        split: the samples.
        collate: makes a batch.
        batch_size: samples per batch and process.
        seed: seed of the order.
        rank: number of this process.
        world_size: number of processes.
    """

    elastic = True

    def __init__(
        self,
        split: MappedSplit,
        collate: Collate,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.split = split
        self.num_samples = len(split.labels)
        self.collate = collate
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._orders: dict[int, list[int]] = {}

    def __getitem__(self, number: int) -> Batch:
        """Batch of a number, from 0."""
        first = (number * self.world_size + self.rank) * self.batch_size
        positions = range(first, first + self.batch_size)
        places = (divmod(position, self.num_samples) for position in positions)
        rows = np.array([self._order(epoch)[place] for epoch, place in places])
        split = self.split
        return self.collate(split.arrays[rows], split.labels[rows], split.indices[rows], positions)

    def _order(self, epoch: int) -> list[int]:
        """Order of a pass; that of the one before is kept, which a batch may begin in."""
        if epoch not in self._orders:
            order = list(range(self.num_samples))
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            self._orders = {e: kept for e, kept in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]


def map_split(index: ShardIndex, root: Path, split: str, faults: Faults) -> MappedSplit:
    """All samples of a split, from the cache, which is made if missing.

    Args:
        index: index of the shards.
        root: their folder.
        split: name of the split.
        faults: told of damaged samples, also of those that the cache was made without.

    Raises:
        ValueError: if more samples are damaged than may be left out, or all, or the cache is.
    """
    listing = hashlib.sha256((root / INDEX_FILE).read_bytes()).hexdigest()[:16]
    cache = root / CACHE_FOLDER / f"{split}-{listing}"
    try:
        if cache.is_dir() and not (cache / WHOLE_FILE).is_file():
            logger.warning("%s has no checksums, and is made anew", cache)
            shutil.rmtree(cache)
        if not cache.is_dir():
            _make_cache(index, root, split, faults, cache)
            return _open_cache(cache, index, split)
        if faults.verify:
            _check_whole(cache)
        mapped = _open_cache(cache, index, split)
    except OSError as error:
        logger.warning("%s cannot be cached, and is decoded into memory: %s", root, error)
        return _decode_split(index, root, split, faults, folder=None)
    for shard, damage, numbers in mapped.damaged:
        faults.meet(shard, damage, numbers)
    return mapped


def _make_cache(index: ShardIndex, root: Path, split: str, faults: Faults, cache: Path) -> None:
    cache.parent.mkdir(exist_ok=True)
    for older in cache.parent.glob(f"{split}-*"):
        shutil.rmtree(older, ignore_errors=True)
    with scratch_folder(cache.parent, ".part-") as scratch:
        mapped = _decode_split(index, root, split, faults, scratch)
        np.save(scratch / "labels.npy", mapped.labels)
        np.save(scratch / "indices.npy", mapped.indices)
        (scratch / "damaged.json").write_text(json.dumps(mapped.damaged))
        (scratch / WHOLE_FILE).write_text(json.dumps(_checksums(scratch)))
        for written in scratch.iterdir():
            flush_file(written)
        flush_folder(scratch)
        scratch.chmod(0o755)
        try:
            os.replace(scratch, cache)
        except OSError:  # another process was faster
            if not cache.is_dir():
                raise


def _checksums(cache: Path) -> dict[str, str]:
    found = {}
    for name in CACHED_FILES:
        sha256 = hashlib.sha256()
        with open_regular(cache / name) as opened:
            while block := opened.read(BLOCK_BYTES):
                sha256.update(block)
        found[name] = sha256.hexdigest()
    return found


def _check_whole(cache: Path) -> None:
    """Compare a cache with its checksums.

    Raises:
        ValueError: if a file is another.
    """
    try:
        expected = json.loads(read_regular(cache / WHOLE_FILE, BLOCK_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the cache {cache} is damaged: {error}; remove it") from error
    found = _checksums(cache)
    for name in CACHED_FILES:
        if not isinstance(expected, dict) or expected.get(name) != found[name]:
            raise ValueError(
                f"the cache {cache} is damaged: {name} does not fit its checksum; remove it"
            )


def _open_cache(cache: Path, index: ShardIndex, split: str) -> MappedSplit:
    """The arrays that `_make_cache` wrote, or others that would do, if nothing was compared.

    All are mapped first: the header of a damaged file can ask for any amount of memory.
    """
    try:
        labels, indices, arrays = (
            np.load(cache / f"{name}.npy", mmap_mode="r")
            for name in ("labels", "indices", "arrays")
        )
        damaged = _listed(json.loads((cache / "damaged.json").read_text()))
        fitting = (
            arrays.dtype == np.dtype(index.dtype)
            and arrays.shape[1:] == index.stored_shape
            and 0 < labels.size <= len(arrays)
            and labels.shape == indices.shape == (labels.size,)
            and labels.dtype == indices.dtype == np.int64
            and _are_within(labels, 0, max(index.num_classes, 1))
            and all(
                _are_within(numbers, least, index.splits[split].num_samples)
                for numbers, least in [(indices, 0), *((numbers, -1) for _, _, numbers in damaged)]
            )
        )
    except (ValueError, TypeError, EOFError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(f"the cache {cache} is damaged: {error}; remove it") from error
    if not fitting:
        raise ValueError(f"the cache {cache} is damaged: it does not fit the index; remove it")
    return MappedSplit(arrays[: labels.size], np.array(labels), np.array(indices), damaged)


def _listed(content: Any) -> list[tuple[str, Damage, list[int]]]:
    """Damage as `damaged.json` lists it."""
    found = [(shard, Damage(*damage), numbers) for shard, damage, numbers in content]
    if not all(
        all(isinstance(text, str) for text in (shard, *damage)) and isinstance(numbers, list)
        for shard, damage, numbers in found
    ):
        raise TypeError("it lists other things than damage")
    return found


def _are_within(numbers: Any, least: int, end: int) -> bool:
    found = np.asarray(numbers)
    return found.size == 0 or bool(
        found.dtype == np.int64 and found.min() >= least and found.max() < end
    )


def _decode_split(
    index: ShardIndex, root: Path, split: str, faults: Faults, folder: Path | None
) -> MappedSplit:
    """Decode a split into a file of a folder, or into memory."""
    shape = (index.splits[split].num_samples, *index.stored_shape)
    arrays: Array
    if folder is None:
        arrays = np.empty(shape, index.dtype)
    else:
        file = folder / "arrays.npy"
        arrays = np.lib.format.open_memmap(file, "w+", np.dtype(index.dtype), shape)
    labels: list[int] = []
    indices: list[int] = []
    shards = index.splits[split].shards
    places = list(zip(shards, index.splits[split].numbers(), strict=True))
    # Closed at once: rich waits for itself if its thread collects a bar that was left half-way.
    shown = track(places, f"decoding {split} shards", transient=True, disable=len(places) < 2)
    with closing(shown) as files:  # type: ignore[type-var]
        for shard, numbers in files:
            slots = read_slots(str(root / shard.name), shard.sha256, numbers, index, faults)
            for number, sample in zip(numbers, slots, strict=True):
                if sample is not None:
                    arrays[len(labels)] = sample.array
                    labels.append(sample.label)
                    indices.append(number)
    if not labels:
        raise ValueError(f"no sample of the {split} split of {root} is whole; prepare it again")
    return MappedSplit(
        arrays[: len(labels)],
        np.array(labels, np.int64),
        np.array(indices, np.int64),
        faults.met,
    )
