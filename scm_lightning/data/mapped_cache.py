# SPDX-License-Identifier: Apache-2.0
"""The cache of a split's arrays, from which `mapped.py` takes its batches.

    ROOT/.mapped/SPLIT-DIGEST/    arrays.npy, labels.npy, indices.npy, checksums.npy, damaged.json

It is decoded from the shards once, and appears when all of it is on the disk; where nothing can be
written, every process decodes into its own memory. Shards are compared with their checksums on the
way, so what does not fit gets no further. Every sample in the cache has a checksum of its own,
which is compared when the sample is first used: to read all of a large cache would delay the start.
"""

import hashlib
import json
import logging
import os
import shutil
import tokenize
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from scm_lightning.data.faults import Faults, read_slots
from scm_lightning.data.index import INDEX_FILE, MAX_INDEX_BYTES, ShardIndex
from scm_lightning.data.location import place_of
from scm_lightning.data.mapped import MappedSplit, checksum_of
from scm_lightning.data.shards import Array, Damage
from scm_lightning.given_files import open_regular, read_regular
from scm_lightning.whole_files import flush_file, flush_folder, scratch_folder

logger = logging.getLogger(__name__)

CACHE_FOLDER = ".mapped"
TABLES = ("labels", "indices", "checksums")
"""Files of a cache besides the arrays."""
DAMAGED_FILE = "damaged.json"


def map_split(index: ShardIndex, root: str, split: str, faults: Faults) -> MappedSplit:
    """All samples of a split, from the cache, which is made if missing or damaged.

    Args:
        index: index of the shards.
        root: their folder.
        split: name of the split.
        faults: told of damaged samples, also of those that the cache was made without.

    Raises:
        ValueError: if more samples are damaged than may be left out, or all.
    """
    content = read_regular(place_of(root, INDEX_FILE), MAX_INDEX_BYTES)
    listing = hashlib.sha256(content).hexdigest()[:16]
    compared = "" if faults.verify else "-unverified"
    cache = Path(root) / CACHE_FOLDER / f"{split}-{listing}{compared}"
    mapped = None
    try:
        if cache.is_dir():
            mapped = _usable_cache(cache, index, split)
        if mapped is None:
            _make_cache(index, root, split, faults, cache)
            return _open_cache(cache, index, split)
    except OSError as error:
        logger.warning("%s cannot be cached, and is decoded into memory: %s", root, error)
        return _decode_split(index, root, split, faults, folder=None)
    for shard, damage, numbers in mapped.damaged:
        faults.meet(shard, damage, numbers)
    return mapped


def _usable_cache(cache: Path, index: ShardIndex, split: str) -> MappedSplit | None:
    try:
        return _open_cache(cache, index, split)
    except (OSError, ValueError) as error:
        logger.warning("the cache %s cannot be used and is made anew: %s", cache, error)
        return None


def _make_cache(index: ShardIndex, root: str, split: str, faults: Faults, cache: Path) -> None:
    """Write a cache, and put it in its place once all of it is on the disk."""
    cache.parent.mkdir(exist_ok=True)
    for older in cache.parent.glob(f"{split}-*"):
        shutil.rmtree(older, ignore_errors=True)
    with scratch_folder(cache.parent, ".part-") as scratch:
        mapped = _decode_split(index, root, split, faults, scratch)
        for name in TABLES:
            np.save(scratch / f"{name}.npy", getattr(mapped, name))
        (scratch / DAMAGED_FILE).write_text(json.dumps(mapped.damaged))
        for file in scratch.iterdir():
            flush_file(file)
        flush_folder(scratch)
        scratch.chmod(0o755)
        try:
            os.replace(scratch, cache)
        except OSError:  # another process was faster
            if not cache.is_dir():
                raise
        flush_folder(cache.parent)


def _open_cache(cache: Path, index: ShardIndex, split: str) -> MappedSplit:
    """The arrays that `_make_cache` wrote, or others that would do until their checksums are met.

    All are mapped first: the header of a damaged file can ask for any amount of memory.
    """
    try:
        arrays, *tables = (_mapped_array(cache / f"{name}.npy") for name in ("arrays", *TABLES))
        labels, indices, checksums = tables
        damaged = _listed(json.loads(read_regular(cache / DAMAGED_FILE, MAX_INDEX_BYTES)))
        fitting = (
            arrays.dtype == np.dtype(index.dtype)
            and arrays.shape[1:] == index.stored_shape
            and 0 < labels.size <= len(arrays)
            and labels.shape == indices.shape == checksums.shape == (labels.size,)
            and checksums.dtype == np.uint32
            and labels.dtype == indices.dtype == np.int64
            and _are_within(labels, 0, max(index.num_classes, 1))
            and all(
                _are_within(numbers, least, index.splits[split].num_samples)
                for numbers, least in [(indices, 0), *((numbers, -1) for _, _, numbers in damaged)]
            )
        )
    except (ValueError, TypeError, EOFError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(f"it is damaged: {error}") from error
    if not fitting:
        raise ValueError("it does not fit the index")
    labels, indices, checksums = (np.array(table) for table in tables)
    return MappedSplit(arrays[: labels.size], labels, indices, damaged, checksums, str(cache))


def _mapped_array(file: Path) -> Array:
    open_regular(file).close()
    mapped: Array = np.load(file, mmap_mode="r")
    return mapped


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
    index: ShardIndex, root: str, split: str, faults: Faults, folder: Path | None
) -> MappedSplit:
    """Decode a split into a file of a folder, or into memory."""
    shape = (index.splits[split].num_samples, *index.stored_shape)
    arrays: Array
    if folder is None:
        arrays = np.empty(shape, index.dtype)
    else:
        file = folder / "arrays.npy"
        arrays = np.lib.format.open_memmap(file, "w+", np.dtype(index.dtype), shape)
    labels, indices = np.empty(shape[0], np.int64), np.empty(shape[0], np.int64)
    checksums, num_whole = np.empty(shape[0], np.uint32), 0
    places = list(enumerate(faults.numbers))
    # Closed at once: rich waits for itself if its thread collects a bar that was left half-way.
    shown = track(places, f"decoding {split} shards", transient=True, disable=len(places) < 2)
    with closing(shown) as shards:  # type: ignore[type-var]
        for chosen, numbers in shards:
            before, slots = num_whole, read_slots(root, chosen, index, faults)
            for number, sample in zip(numbers, slots, strict=True):
                if sample is not None:
                    arrays[num_whole], labels[num_whole] = sample.array, sample.label
                    indices[num_whole] = number
                    checksums[num_whole] = checksum_of(number, sample.label, sample.array)
                    num_whole += 1
            if faults.is_refused(chosen):
                num_whole = before
    if not num_whole:
        raise ValueError(f"no sample of the {split} split of {root} is whole; prepare it again")
    arrays, labels, indices = arrays[:num_whole], labels[:num_whole], indices[:num_whole]
    kept = None if folder is None else checksums[:num_whole]
    return MappedSplit(arrays, labels, indices, faults.met, kept, str(folder or root))
