# SPDX-License-Identifier: Apache-2.0
"""The index of a folder of shards: what is in them, and how stored arrays become data.

Arrays are normalised per channel; latents likewise, with a mean and deviation of their own:

    x0    = (array - mean) sigma_data / std          per channel
    array = x0 std / sigma_data + mean

The index is written last: a folder that has one is complete.
"""

import itertools
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scm_lightning import __version__
from scm_lightning.data.index_checks import MAX_NUMBER, check_types
from scm_lightning.data.location import is_remote, place_of, read_file
from scm_lightning.data.stored_conditions import StoredCondition, check_name
from scm_lightning.whole_files import write_whole

INDEX_FILE = "shards.json"
FORMAT_VERSION = 2
MAX_INDEX_BYTES = 1 << 26
"""Largest index: about half a million shards."""
DTYPES = ("uint8", "float16", "float32")


@dataclass(frozen=True)
class Shard:
    """One file of samples.

    Args:
        name: plain name, in the folder of the index.
        num_samples: samples in it.
        num_bytes: its size.
        sha256: checksum of its content.
    """

    name: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """A part of a data set: its shards, in order."""

    shards: list[Shard]

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.num_samples for shard in self.shards)

    def numbers(self) -> list[range]:
        """Numbers in the split of the samples of each shard."""
        ends = list(itertools.accumulate(shard.num_samples for shard in self.shards))
        return [range(start, end) for start, end in itertools.pairwise([0, *ends])]


@dataclass(frozen=True)
class Latents:
    """Origin of the latents of a folder: how images became latents, and become images again.

    Args:
        autoencoder: folder or name of diffusers' AutoencoderKL.
        weights_sha256: checksum of its weights.
        image_shape: shape of the images. (C, H, W).
        stored: `mean` of the posterior, or `mean_std`, both, of which a sample is drawn whenever a
            batch is made.
        pixels: what the autoencoder is given: `signed`, images in [-1, 1], or `unit`, in [0, 1].
    """

    autoencoder: str
    weights_sha256: str
    image_shape: tuple[int, ...]
    stored: str
    pixels: str = "signed"

    def __post_init__(self) -> None:
        if self.pixels not in ("signed", "unit"):
            raise ValueError(f"pixels of latents must be signed or unit, got {self.pixels!s:.20}")


@dataclass(frozen=True)
class ShardIndex:
    """Contents of a folder of shards.

    Args:
        splits: parts of the data set by name; `train` and `heldout`.
        shape: shape of one sample as data. (C, H, W).
        dtype: type of the stored arrays: uint8, float16 or float32.
        num_classes: number of classes, 0 without labels.
        class_names: their names; none if they go by their numbers.
        mean: mean to subtract, per channel.
        std: standard deviation to divide by, per channel.
        max_value: the pixel value shown as white; of latents unused.
        source: where the data come from.
        source_checksum: fingerprint of the source and of how it was prepared.
        num_unreadable: files of the source that could not be read and were left out.
        latents: of what the samples are latents; None if they are the images themselves.
        conditions: what every sample has beside data and class, by name.
        captions: whether every sample has a caption.
        version: version of this package that wrote the shards.
        format_version: version of this file's layout.

    Raises:
        ValueError: if the statistics do not fit the shape.
    """

    splits: Mapping[str, Split]
    shape: tuple[int, ...]
    dtype: str
    num_classes: int
    class_names: list[str]
    mean: list[float]
    std: list[float]
    max_value: float
    source: str
    source_checksum: str = ""
    num_unreadable: int = 0
    latents: Latents | None = None
    conditions: Mapping[str, StoredCondition] = field(default_factory=dict)
    captions: bool = False
    version: str = field(default=__version__)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        channels = self.shape[0] if self.shape else 0
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"data of shape {self.shape} need a mean and a deviation for each of {channels} "
                f"channels, got {len(self.mean)} and {len(self.std)}"
            )
        small, large = 1 / MAX_NUMBER, MAX_NUMBER
        means_fit = all(-large < m < large for m in self.mean)
        if not means_fit or not all(small < s < large for s in self.std):
            raise ValueError(
                f"data must have finite means and positive standard deviations per channel, got "
                f"{self.mean!s:.60} and {self.std!s:.60}; a channel that never changes cannot be "
                "learned"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"arrays must be of a type of {DTYPES}, got {self.dtype}")
        for name in self.conditions:
            check_name(name)

    def write(self, folder: Path) -> None:
        """Write the index into a folder of shards, whole or not at all."""
        write_whole(folder / INDEX_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(root: Path | str) -> "ShardIndex":
        """Read the index of a folder or place, and check that the shards are there and whole.

        Sizes are compared in a folder only.

        Raises:
            ValueError: if the index is missing, damaged or of another version.
        """
        place = place_of(str(root), INDEX_FILE)
        try:
            fields = json.loads(read_file(place, MAX_INDEX_BYTES))
            version = fields.get("format_version")
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{place} cannot be read: {error}; prepare the shards again"
            ) from error
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{place} must have format version {FORMAT_VERSION}, got {version!r:.20}; remove "
                f"{root} and prepare the shards with scm_lightning {__version__}"
            )
        try:
            return ShardIndex.of_fields(fields)
        except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{place} does not describe shards: {error}; prepare the shards again"
            ) from error

    @staticmethod
    def of_fields(fields: Mapping[str, Any]) -> "ShardIndex":
        """The index that a file's fields describe.

        Args:
            fields: as `dataclasses.asdict` and JSON make them of an index.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, OverflowError: if they are others.
        """
        splits = {
            name: Split([Shard(**shard) for shard in split["shards"]])
            for name, split in fields["splits"].items()
        }
        if missing := {"train", "heldout"} - splits.keys():
            raise ValueError(f"it has no split {' and '.join(sorted(missing))}")
        for shard in (shard for split in splits.values() for shard in split.shards):
            place_of("the folder", shard.name)  # refuses a name that is a path or a command
        latents = fields["latents"]
        if latents is not None:
            latents = Latents(**{**latents, "image_shape": tuple(latents["image_shape"])})
        conditions = {
            name: StoredCondition(**{**condition, "shape": tuple(condition["shape"])})
            for name, condition in fields.get("conditions", {}).items()
        }
        known = {**fields, "splits": splits, "latents": latents, "shape": tuple(fields["shape"])}
        index = ShardIndex(**{**known, "conditions": conditions})
        check_types(index)
        return index

    def damage(self, root: Path | str) -> list[str]:
        """Faults of the files of a folder, by their sizes; none for other places."""
        if is_remote(str(root)):
            return []
        found = []
        for shard in self.shards:
            file = Path(place_of(str(root), shard.name))
            size = file.stat().st_size if file.is_file() else None
            if size != shard.num_bytes:
                other = "is not a regular file" if file.exists() else "is missing"
                what = other if size is None else f"has {size} bytes"
                found.append(f"shard {file} {what}, of {shard.num_bytes} listed in {INDEX_FILE}")
        return found

    def with_conditions(self, names: Collection[str]) -> "ShardIndex":
        """The index of the same data with some of the conditions.

        Args:
            names: which.

        Raises:
            ValueError: if there is no condition of a name.
        """
        if unknown := [name for name in names if name not in self.conditions]:
            known = f"only {', '.join(self.conditions)}" if self.conditions else "none at all"
            raise ValueError(
                f"conditions must be names of those in the shards, which have {known}, got "
                f"{', '.join(unknown)}; leave them out, or prepare shards that have them"
            )
        chosen = {name: each for name, each in self.conditions.items() if name in names}
        return replace(self, conditions=chosen)

    @property
    def shards(self) -> list[Shard]:
        """The files of all splits."""
        return [shard for split in self.splits.values() for shard in split.shards]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of an array in the shards: as data, or means and deviations of latents."""
        if self.latents is not None and self.latents.stored == "mean_std":
            return (2 * self.shape[0], *self.shape[1:])
        return self.shape

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, to look at. (C, H, W)."""
        return self.shape if self.latents is None else self.latents.image_shape

    @property
    def are_images(self) -> bool:
        """Tell whether these are gray or color images, or latents of such."""
        return len(self.image_shape) == 3 and self.image_shape[0] in (1, 3)

    @property
    def are_clips(self) -> bool:
        """Tell whether these are gray or color clips, (C, F, H, W)."""
        return len(self.image_shape) == 4 and self.image_shape[0] in (1, 3)

    @property
    def shows_pixels(self) -> bool:
        """Tell whether the samples are pixels, from black to white: bytes are, too."""
        return self.latents is None and (self.are_images or self.dtype == "uint8")

    @property
    def num_stored_bytes(self) -> int:
        """Size of arrays and conditions of the training split; of varying ones the largest."""
        one = math.prod(self.stored_shape) * np.dtype(self.dtype).itemsize
        one += sum(condition.num_bytes for condition in self.conditions.values())
        return one * self.splits["train"].num_samples

    def arrays_to_data(self, arrays: Tensor, sigma_data: float) -> Tensor:
        """Normalise arrays. (B, *shape) pixels or latents to (B, *shape) data units."""
        mean, std = self._statistics(arrays)
        return (arrays.float() - mean) * (sigma_data / std)

    def data_to_arrays(self, x0: Tensor, sigma_data: float) -> Tensor:
        """Undo the normalisation. (B, *shape) data units to pixels or latents, float32."""
        mean, std = self._statistics(x0)
        return x0.float() * (std / sigma_data) + mean

    def pixels_to_images(self, pixels: Tensor) -> Tensor:
        """Make images to look at and to measure. (B, C, H, W) pixels to [0, 1]."""
        return (pixels / self.max_value).clamp(0, 1)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = (-1, *[1] * (len(self.shape) - 1))
        mean = torch.tensor(self.mean, device=x.device).reshape(axes)
        std = torch.tensor(self.std, device=x.device).reshape(axes)
        return mean, std
