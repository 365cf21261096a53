# SPDX-License-Identifier: Apache-2.0
"""The index of a folder of shards: what is in them, and how pixels become data.

Pixels are normalised per channel by the statistics of the training split:

    x0     = (pixels - mean) sigma_data / std          per channel
    pixels = x0 std / sigma_data + mean
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

INDEX_FILE = "shards.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Split:
    """A part of a data set: its shard files, relative to the index, and their number of samples."""

    shards: list[str]
    num_samples: int


@dataclass(frozen=True)
class ShardIndex:
    """Contents of a folder of shards.

    Args:
        splits: parts of the data set by name; `train` and `heldout`.
        shape: shape of one sample.
        num_classes: number of classes, 0 without labels.
        mean: mean of the training pixels, per channel.
        std: standard deviation of the training pixels, per channel.
        max_value: the pixel value shown as white.
        source: where the data come from.
        format_version: version of this file's layout.
    """

    splits: Mapping[str, Split]
    shape: tuple[int, ...]
    num_classes: int
    mean: list[float]
    std: list[float]
    max_value: float
    source: str
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        """Write the index into a folder of shards."""
        (folder / INDEX_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(folder: Path) -> "ShardIndex":
        """Read the index of a folder and check that its shards are there.

        Raises:
            ValueError: if the index is missing, damaged or of another version, or a shard is
                missing.
        """
        file = folder / INDEX_FILE
        try:
            fields = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read: {error}; prepare the shards again") from error
        if fields.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{file} must have format version {FORMAT_VERSION}, got "
                f"{fields.get('format_version')}; prepare the shards with this version"
            )
        fields["splits"] = {name: Split(**split) for name, split in fields["splits"].items()}
        fields["shape"] = tuple(fields["shape"])
        index = ShardIndex(**fields)
        for split in index.splits.values():
            for shard in split.shards:
                if not (folder / shard).is_file():
                    raise ValueError(
                        f"{file} lists the shard {shard}, which is missing; remove the folder to "
                        "have it prepared again"
                    )
        return index

    def files(self, folder: Path, split: str) -> list[str]:
        """Paths of the shards of a split."""
        return [str(folder / shard) for shard in self.splits[split].shards]

    def pixels_to_data(self, pixels: Tensor, sigma_data: float) -> Tensor:
        """Normalise pixels. (B, *shape) pixel units to (B, *shape) data units."""
        mean, std = self._statistics(pixels)
        return (pixels.float() - mean) * (sigma_data / std)

    def data_to_images(self, x0: Tensor, sigma_data: float) -> Tensor:
        """Make images to look at and to measure. (B, *shape) data units to [0, 1], clipped."""
        mean, std = self._statistics(x0)
        return ((x0.float() * (std / sigma_data) + mean) / self.max_value).clamp(0, 1)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = (-1, *[1] * (len(self.shape) - 1))
        mean = torch.tensor(self.mean, device=x.device).reshape(axes)
        std = torch.tensor(self.std, device=x.device).reshape(axes)
        return mean, std
