# SPDX-License-Identifier: Apache-2.0
"""Images to complete: at a low resolution, or with a hole.

The condition is called `image`: a network that takes it has `image_channels`.
Axes: B batch, C channels, H and W pixels, ... frames of a video, if it is one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.data.degradation import Degradation


@dataclass(frozen=True)
class LowResolution(Degradation):
    """Condition `image`, of the data's shape: blocks of pixels, each of the mean of its pixels.

    Every block is filled with its mean instead of being interpolated: nothing is added to what a
    smaller image holds, and the network can tell how many pixels it had.

    Args:
        factor: side of a block, a divisor of height and width. Pixels.

    Raises:
        ValueError: if the factor is less than 2.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ValueError(f"factor must be at least 2, got {self.factor}; 2 halves each side")

    def shapes(self, data_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """See `Degradation`."""
        if len(data_shape) < 3 or any(side % self.factor for side in data_shape[-2:]):
            raise ValueError(
                f"a low resolution is that of images with H and W divisible by the factor "
                f"{self.factor}, got data of shape {data_shape}; use another factor"
            )
        return {"image": data_shape}

    def __call__(self, data: Tensor, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """See `Degradation`; nothing is drawn."""
        blocks = torch.nn.functional.avg_pool2d(data.flatten(1, -3), self.factor)
        filled = blocks.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)
        return {"image": filled.reshape(data.shape)}

    def differences(self, data: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """Between the low resolution of data and the one that was given. (B, ...)."""
        return self(data, [])["image"] - conditions["image"]


@dataclass(frozen=True)
class Hole(Degradation):
    """Condition `image`: the data without a rectangle, and 1 where they are known, else 0.

    The rectangle lies anywhere, a draw for every sample; the data are 0, mid-gray, in it. An image
    that is dropped for guidance is zeros: a hole of the whole size.

    Args:
        share: area of the hole as a share of the image's; every height that it can have is as
            likely, and the width is rounded to whole pixels.

    Raises:
        ValueError: if the share is not between 0 and 1.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(
                f"share must be above 0 and below 1, got {self.share}; 0.25 is a fourth"
            )

    def shapes(self, data_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """See `Degradation`."""
        if len(data_shape) < 3:
            raise ValueError(
                f"a hole is one in images, (C, H, W), got data of shape {data_shape}; leave it out"
            )
        return {"image": (data_shape[0] + 1, *data_shape[1:])}

    def __call__(self, data: Tensor, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """See `Degradation`."""
        known = torch.ones_like(data[:, :1])
        for one, generator in zip(known, generators, strict=True):
            rows, columns = self._rectangle(data.shape[-2], data.shape[-1], generator)
            one[..., rows, columns] = 0.0
        return {"image": torch.cat([data * known, known], dim=1)}

    def differences(self, data: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """Between the known pixels of data and those that were given. (B, ...)."""
        given, known = conditions["image"][:, :-1], conditions["image"][:, -1:]
        # Scaled up from all pixels to those that are known.
        area = known.flatten(1).mean(1).clamp(min=torch.finfo(known.dtype).eps)
        scale: Tensor = known / area.sqrt().reshape(-1, *[1] * (data.ndim - 1))
        return (data - given) * scale

    def _rectangle(
        self, num_rows: int, num_columns: int, generator: torch.Generator
    ) -> tuple[slice, slice]:
        """Rows and columns of a hole."""
        area = self.share * num_rows * num_columns
        lowest = math.ceil(self.share * num_rows)
        highest = max(lowest, min(num_rows, int(area)))  # of one column at least
        height = _draw(lowest, highest, generator)
        width = max(1, round(area / height))
        row = _draw(0, num_rows - height, generator)
        column = _draw(0, num_columns - width, generator)
        return slice(row, row + height), slice(column, column + width)


def _draw(lowest: int, highest: int, generator: torch.Generator) -> int:
    """A whole number between two, both among them."""
    return int(torch.randint(lowest, highest + 1, (), generator=generator))
