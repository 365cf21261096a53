# SPDX-License-Identifier: Apache-2.0
"""The plan of a preparation: which image goes into which shard, under which key.

The plan follows from the source, the options and the seed alone, and so do the shards' bytes. Its
digest tells whether a folder that was begun, or finished, is the one that is asked for.

Order. Training images are a permutation of all of them, so every shard has all classes in it.
Held-out images take the classes in turn, so that any leading block of them is balanced; where they
are cut from the source here, every class gives as many, a small one at most half of its images.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scm_lightning.data.shards import Array
from scm_lightning.preparation.captions import Captions
from scm_lightning.preparation.content import ShardContent
from scm_lightning.preparation.latent_content import paper_statistics
from scm_lightning.preparation.sources.source import ImageSource
from scm_lightning.preparation.transform import ImageTransform

TRAIN, HELDOUT = "train", "heldout"
ORDER = "order"
"""Setting that follows from the others, and from the version of numpy."""
HELDOUT_SHARE = 0.1
"""Share of the images held out where neither the source nor the user says which."""
MIN_HELDOUT = 2
"""Fewest images held out; a spread, and so a score, needs as many."""


@dataclass(frozen=True)
class PlannedShard:
    """One shard that is to be written.

    Args:
        split: `train` or `heldout`.
        number: its number in the split.
        first: number in the split of its first sample; keys count from there.
        items: numbers of its images in the source, in order.
    """

    split: str
    number: int
    first: int
    items: Sequence[int]

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.split}-{self.number:06d}.tar"

    def key(self, position: int) -> str:
        """Key of the sample at a position of this shard."""
        return f"{self.first + position:08d}"


@dataclass(frozen=True)
class Plan:
    """Shards to be written, and the settings that they follow from.

    Args:
        shards: all shards, the training ones first.
        settings: everything that the folder's content depends on, as values of JSON.
    """

    shards: Sequence[PlannedShard]
    settings: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the settings."""
        text = json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def num_images(self, split: str | None = None) -> int:
        """Images of a split, or of all."""
        return sum(len(each.items) for each in self.shards if split in (None, each.split))


@dataclass(frozen=True)
class Recipe:
    """Recipe for shards: a source, and everything else that they depend on.

    Args:
        source: the images.
        transform: gives them the shape that is stored.
        content: what is stored of them.
        heldout: share of the images that is held out, or from 1 on their number; None for the
            source's own split, or 0.1.
        samples_per_shard: images in every shard but a split's last.
        captions: captions of the images, whose tokens are stored beside them; None for no text.
        normalize: `measured`, by the training images' mean and deviation; `range`, the paper's
            [-1, 1] for pixels; or `paper`, the paper's mean and deviation for latents.
        seed: of the order, and of the choice of what is held out; None for the source's own order.

    Raises:
        ValueError: if `range` is asked for and no pixels are stored, or `paper` and no latents
            with as many channels as the paper's.
    """

    source: ImageSource
    transform: ImageTransform
    content: ShardContent
    heldout: float | None = None
    samples_per_shard: int = 1000
    normalize: str = "measured"
    seed: int | None = 0
    captions: Captions | None = None

    def __post_init__(self) -> None:
        kind, known = ("pixels", "range") if self.content.latents is None else ("latents", "paper")
        if self.normalize not in ("measured", known):
            raise ValueError(
                f"normalize must be measured or {known} for {kind}, got {self.normalize}"
            )
        if self.normalize == "paper":
            paper_statistics(self.content.shape, self.content.latents)

    def plan(self) -> Plan:
        """Decide what goes where.

        Raises:
            ValueError: if there are too few images, or the options do not fit the source.
        """
        size, seed = self.samples_per_shard, self.seed
        if size < 1 or (seed is not None and seed < 0):
            raise ValueError(
                f"samples_per_shard must be at least 1 and seed at least 0, got {size} and {seed}"
            )
        num = len(self.source.items)
        order = np.arange(num) if seed is None else np.random.default_rng(seed).permutation(num)
        splits = _split(self.source, self.heldout, order)
        shards = [
            PlannedShard(name, number, first, numbers[first : first + size])
            for name, numbers in splits.items()
            for number, first in enumerate(range(0, len(numbers), size))
        ]
        settings = {
            **asdict(self.transform),
            **self.content.settings,
            **(self.captions.settings if self.captions else {}),
            "normalize": self.normalize,
            "shape": list(self.content.shape),
            "dtype": self.content.dtype,
            "heldout": self.heldout,
            "samples_per_shard": size,
            "seed": seed,
            "fingerprint of the source": self.source.fingerprint(),
            ORDER: _order_digest(splits),
        }
        return Plan(shards, settings)


def _split(source: ImageSource, heldout: float | None, order: Array) -> dict[str, list[int]]:
    """Numbers of the images of both splits, in order."""
    labels = np.array([item.label for item in source.items], dtype=np.int64)
    own = np.array([item.split == HELDOUT for item in source.items], dtype=bool)
    sizes = np.bincount(labels)
    ranks = _ranks(labels, sizes, order)
    if own.any():
        if heldout is not None:
            raise ValueError(
                f"heldout must not be given for {source.description}, which has a split of its "
                f"own with {own.sum()} images held out, got {heldout}; leave it out"
            )
        chosen = own
    else:
        turn = np.lexsort((labels, ranks))
        allowed = turn[ranks[turn] < (sizes // 2)[labels[turn]]]
        count = _num_heldout(HELDOUT_SHARE if heldout is None else heldout, labels, len(allowed))
        chosen = np.zeros(len(labels), dtype=bool)
        chosen[allowed[:count]] = True
    held = np.flatnonzero(chosen)
    held = held[np.lexsort((labels[held], ranks[held]))]
    train = order[~chosen[order]]
    if len(held) < MIN_HELDOUT or len(train) < 1:
        raise ValueError(
            f"at least {MIN_HELDOUT} images must be held out and 1 left to train on, got "
            f"{len(held)} and {len(train)} of {source.description}; give more images, or heldout"
        )
    return {TRAIN: train.tolist(), HELDOUT: held.tolist()}


def _ranks(labels: Array, sizes: Array, order: Array) -> Array:
    """Place of every image among those of its class, in an order."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


def _num_heldout(heldout: float, labels: Array, most: int) -> int:
    """Number of images held out, of at most those that the classes can spare."""
    count = round(heldout * len(labels)) if 0 < heldout < 1 else int(heldout)
    if heldout <= 0 or (heldout >= 1 and count != heldout) or count > most:
        raise ValueError(
            "heldout must be a share between 0 and 1 or a whole number of images, and leave half "
            f"of every class to train on ({most} of {len(labels)} images at most), got {heldout}"
        )
    return count


def _order_digest(splits: Mapping[str, Sequence[int]]) -> str:
    """SHA-256 of what comes when: another version of numpy might permute differently."""
    digest = hashlib.sha256()
    for numbers in splits.values():
        digest.update(np.array([len(numbers), *numbers], dtype="<i8").tobytes())
    return digest.hexdigest()
