# SPDX-License-Identifier: Apache-2.0
"""The cache of a split's arrays, from which `mapped.py` takes its batches.

    ROOT/.mapped/SPLIT-DIGEST/samples.npy     array, label, number and checksum of every sample
    ROOT/.mapped/SPLIT-DIGEST/list.json       how many there are, and damage

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

Listed = tuple[str, Damage, list[int]]
CACHE_FOLDER = ".mapped"
SAMPLES_FILE, LIST_FILE = "samples.npy", "list.json"


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
        return _decode_split(index, root, split, faults, file=None)
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
        made = _decode_split(index, root, split, faults, scratch / SAMPLES_FILE)
        (scratch / LIST_FILE).write_text(json.dumps([len(made.labels), made.damaged]))
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
    """The samples that `_make_cache` wrote, or others that would do until their checksums are met.

    They are mapped: the header of a damaged file can ask for any amount of memory.
    """
    try:
        open_regular(cache / SAMPLES_FILE).close()
        samples = np.load(cache / SAMPLES_FILE, mmap_mode="r")
        num_whole, listed = json.loads(read_regular(cache / LIST_FILE, MAX_INDEX_BYTES))
        damaged = [(str(shard), Damage(*map(str, of)), numbers) for shard, of, numbers in listed]
        numbers = np.array([-1, *(n for _, _, of in damaged for n in of)])
        fitting = (
            (samples.dtype, samples.ndim) == (_sample_type(index), 1)
            and 0 < num_whole <= len(samples)
            and numbers.dtype == np.int64
            and numbers.min() == -1
            and numbers.max() < index.splits[split].num_samples
        )
    except (ValueError, TypeError, EOFError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(f"it is damaged: {error}") from error
    if not fitting:
        raise ValueError("it does not fit the index")
    return _split_of(samples[:num_whole], damaged, str(cache))


def _sample_type(index: ShardIndex) -> np.dtype[Any]:
    return np.dtype(
        [
            *[("array", index.dtype, index.stored_shape), ("label", "<i8")],
            *[("index", "<i8"), ("checksum", "<u4")],
        ]
    )


def _split_of(samples: Array, damaged: list[Listed], cache: str) -> MappedSplit:
    arrays, labels, indices = samples["array"], samples["label"], samples["index"]
    checksums = samples["checksum"] if cache else None
    return MappedSplit(arrays, labels, indices, damaged, checksums, cache)


def _decode_split(
    index: ShardIndex, root: str, split: str, faults: Faults, file: Path | None
) -> MappedSplit:
    """Decode a split into a file, or into memory."""
    num_samples, dtype = index.splits[split].num_samples, _sample_type(index)
    samples: Array
    if file is None:
        samples = np.empty(num_samples, dtype)
    else:
        samples = np.lib.format.open_memmap(file, "w+", dtype, (num_samples,))
    num_whole, places = 0, list(enumerate(faults.numbers))
    # Closed at once: rich waits for itself if its thread collects a bar that was left half-way.
    shown = track(places, f"decoding {split} shards", transient=True, disable=len(places) < 2)
    with closing(shown) as shards:  # type: ignore[type-var]
        for chosen, numbers in shards:
            before, slots = num_whole, read_slots(root, chosen, index, faults)
            for number, found in zip(numbers, slots, strict=True):
                if found is not None:
                    checksum = checksum_of(number, found.label, found.array)
                    samples[num_whole] = (found.array, found.label, number, checksum)
                    num_whole += 1
            if faults.is_refused(chosen):
                num_whole = before
    if not num_whole:
        raise ValueError(f"no sample of the {split} split of {root} is whole; prepare it again")
    return _split_of(samples[:num_whole], faults.met, str(file or ""))
