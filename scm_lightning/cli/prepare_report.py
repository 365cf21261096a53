# SPDX-License-Identifier: Apache-2.0
"""Output of `scm prepare`: a table, a sheet of images, the command that comes next."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scm_lightning.data.index import ShardIndex
from scm_lightning.data.latents import Autoencoder
from scm_lightning.data.pictures import captioned_rows, image_grid
from scm_lightning.data.shards import Sample, read_shard
from scm_lightning.preparation.engine import NAMED, Preparation
from scm_lightning.preparation.plan import Recipe
from scm_lightning.preparation.space import megabytes, needed_bytes
from scm_lightning.saying import show

SHEET_FILE = "contact_sheet.png"
SHEET_WIDTH = 1000
"""Width of the images on a sheet, about. Screen pixels."""
MAX_COLUMNS, MAX_ROWS = 16, 12
MAX_LOOKED_AT = 5000
"""Images that are read to fill a sheet."""


def summary(recipe: Recipe, done: Preparation | None = None) -> None:
    """Show what was written, or would be.

    Args:
        recipe: what is made of which source.
        done: what came of it; None if nothing is written yet.
    """
    content, classes = recipe.content, _classes(recipe, [] if done is None else done.unreadable)
    sample = f"{' x '.join(map(str, content.stored_shape))} {content.dtype}"
    if done is None:
        plan = recipe.plan()
        found = {
            split: (plan.num_images(split), sum(each.split == split for each in plan.shards))
            for split in ("train", "heldout")
        }
        size = megabytes(needed_bytes(plan.shards, recipe))
        further = {"on disk": f"about {size}, nothing of which is written yet"}
    else:
        index = done.index
        found = {
            name: (split.num_samples, len(split.shards)) for name, split in index.splits.items()
        }
        statistics = zip(index.mean, index.std, strict=True)
        further = {
            "mean, std": "; ".join(f"{mean:.4g}, {std:.4g}" for mean, std in statistics),
            "on disk": megabytes(sum(shard.num_bytes for shard in index.shards)),
            "unreadable": _unreadable(done.unreadable),
        }
        if done.num_images:
            rate = done.num_images / max(done.seconds, 1e-9)
            further["time"] = f"{done.seconds:.1f} s, {rate:,.0f} images/s"
    splits = {
        name: f"{images:,} images in {shards:,} shard{'s' if shards > 1 else ''}"
        for name, (images, shards) in found.items()
    }
    if recipe.captions is not None:
        encoder = recipe.captions.encoder
        further = {
            "text": f"up to {encoder.max_length} {encoder.units} x {encoder.width} of "
            f"{encoder.name}",
            **further,
        }
    rows = {**splits, "classes": classes, "sample": sample, **further}
    show(("", ""), list(rows.items()), show_header=False)


def contact_sheet(
    folder: Path, index: ShardIndex, autoencoder: Autoencoder | None = None, device: str = "cpu"
) -> Image.Image:
    """Images of the training split, read from the shards.

    Args:
        folder: folder of the shards.
        index: its index.
        autoencoder: what turns latents back into images; None for pixels.
        device: where that is done.

    Returns:
        One row of images for every class if there are few classes, else a block of images; one
        with their captions if they have any.
    """
    columns = min(MAX_COLUMNS, max(2, SHEET_WIDTH // max(48, index.image_shape[2])))
    files = [str(folder / shard.name) for shard in index.splits["train"].shards]
    read = (sample for file in files for sample in read_shard(file, captions=index.captions))

    def images(samples: list[Sample]) -> Tensor:
        return _images(index, samples, autoencoder, device)

    if index.captions or not 0 < index.num_classes <= MAX_ROWS:
        columns = columns // 2 if index.captions else columns
        shown = list(islice(read, columns * MAX_ROWS // 2))
        texts = [sample.caption for sample in shown if sample.caption is not None]
        return image_grid(images(shown), columns, texts)
    rows: list[list[Sample]] = [[] for _ in range(index.num_classes)]
    for sample in islice(read, MAX_LOOKED_AT):
        if len(rows[sample.label]) < columns:
            rows[sample.label].append(sample)
        elif all(len(row) == columns for row in rows):
            break
    named = zip(_names(index), rows, strict=True)
    return captioned_rows({name: images(row) for name, row in named if row})


def _names(index: ShardIndex) -> list[str]:
    return index.class_names or [str(label) for label in range(index.num_classes)]


def _classes(recipe: Recipe, unreadable: list[str]) -> str:
    """Number of classes, and of the readable images in each if they are few."""
    names = recipe.source.class_names
    if not names:
        return "none"
    items = {item.name: item for item in recipe.source.items}
    counts = Counter(item.label for item in items.values())
    for line in unreadable:
        own = line.partition(": ")[0]
        of_line = [own] if own in items else [name for name in items if name in line]
        if of_line:
            counts[items[max(of_line, key=len)].label] -= 1
    if len(names) <= MAX_ROWS:
        listed = ", ".join(f"{name} {counts[label]:,}" for label, name in enumerate(names))
        return f"{len(names)}: {listed}"
    sizes = [counts[label] for label in range(len(names))]
    return f"{len(names):,} of {min(sizes):,} to {max(sizes):,} images"


def _unreadable(lines: list[str]) -> str:
    if not lines:
        return "none"
    others = [f"and {len(lines) - NAMED:,} others"] if len(lines) > NAMED else []
    return "\n".join([f"{len(lines):,}, left out:", *lines[:NAMED], *others])


def _images(
    index: ShardIndex, samples: list[Sample], autoencoder: Autoencoder | None, device: str
) -> Tensor:
    """Images of samples; of posteriors, those of the means. (N, C, H, W) in [0, 1]."""
    stored = torch.from_numpy(np.stack([sample.array[: index.shape[0]] for sample in samples]))
    if autoencoder is not None:
        return autoencoder.decode(stored.to(device))
    return index.pixels_to_images(stored)
