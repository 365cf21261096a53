# SPDX-License-Identifier: Apache-2.0
"""Arrangement of data in diffusers' models, and the positions that go with it.

Axes: B batch, C channels, F frames, H and W pixels of the data, P = H W / 4 patches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Arrangement of data in a model.

    Attributes:
        into: from ours, (B, C, H, W) or (B, C, F, H, W), to the model's.
        back: (output of the model, shape of ours) to ours.
    """

    into: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, tuple[int, ...]], Tensor]


def _pack(u: Tensor) -> Tensor:
    """(B, C, H, W) to (B, P, 4 C), channel 4 c + 2 i + j of the pixel i, j in its patch."""
    batch, channels, height, width = u.shape
    if height % 2 or width % 2:
        raise ValueError(
            f"height and width must be even, since the model takes patches of 2 x 2, got {height} "
            f"x {width}; give data of an even size"
        )
    patches = u.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def _unpack(out: Tensor, shape: tuple[int, ...]) -> Tensor:
    *_, height, width = shape
    patches = out.reshape(out.shape[0], height // 2, width // 2, -1, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(out.shape[0], -1, height, width)


def _swap(u: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """(B, C, F, H, W) to (B, F, C, H, W), and back."""
    return u.transpose(1, 2)


def _keep(u: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    return u


SAME = Layout(_keep, _keep)
FRAMES_FIRST = Layout(_swap, _swap)
PACKED = Layout(_pack, _unpack)


def positions(u: Tensor) -> Tensor:
    """Row and column of every patch behind a zero. (P, 3)."""
    height, width = u.shape[-2] // 2, u.shape[-1] // 2
    rows = torch.arange(height, device=u.device).repeat_interleave(width)
    columns = torch.arange(width, device=u.device).repeat(height)
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).float()


def hunyuan_rotations(config: Any, u: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the positions of HunyuanDiT, whose base is 512 pixels. (P, D) each.

    Source: `get_2d_rotary_pos_embed` of diffusers, whose first half of D is the column's.
    """
    rows, columns = (each // config.patch_size for each in u.shape[-2:])
    base = 512 // 8 // config.patch_size
    grid = torch.meshgrid(*_cropped(rows, columns, base, base, u), indexing="ij")
    half = config.attention_head_dim // 2
    return _rotations((grid[1], half), (grid[0], half))


def cogvideo_rotations(config: Any, u: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the positions of CogVideoX: of patches, or of blocks in 1.5. (P, D) each.

    Source: `get_3d_rotary_pos_embed` of diffusers.
    """
    size, frames = config.patch_size, u.shape[-3]
    rows, columns = u.shape[-2] // size, u.shape[-1] // size
    if config.patch_size_t is None:
        base = config.sample_height // size, config.sample_width // size
        places = _cropped(rows, columns, *base, u)
    else:
        frames = -(-frames // config.patch_size_t)
        places = [_numbers(rows, u), _numbers(columns, u)]
    grid = torch.meshgrid(_numbers(frames, u), *places, indexing="ij")
    eighth = config.attention_head_dim // 8
    return _rotations((grid[0], 2 * eighth), (grid[1], 3 * eighth), (grid[2], 3 * eighth))


def _rotations(*parts: tuple[Tensor, int]) -> tuple[Tensor, Tensor]:
    """Cosine and sine of places, each at `dim` / 2 frequencies, of which every one comes twice."""
    angles = []
    for places, dim in parts:
        steps = torch.arange(0, dim, 2, dtype=torch.float32, device=places.device)
        angle = torch.outer(places.flatten(), 1.0 / 10000.0 ** (steps / dim))
        angles.append(angle.repeat_interleave(2, dim=1))
    whole = torch.cat(angles, 1)
    return whole.cos(), whole.sin()


def _numbers(num: int, u: Tensor) -> Tensor:
    return torch.arange(num, dtype=torch.float32, device=u.device)


def _cropped(rows: int, columns: int, base_rows: int, base_columns: int, u: Tensor) -> list[Tensor]:
    """Places of rows and of columns in the grid in which a model learned its positions.

    Source: `get_resize_crop_region_for_grid` of diffusers' pipelines of HunyuanDiT and CogVideoX.
    """
    if rows / columns > base_rows / base_columns:
        resized = base_rows, round(base_rows / rows * columns)
    else:
        resized = round(base_columns / columns * rows), base_columns
    places = []
    for num, base, size in zip((rows, columns), (base_rows, base_columns), resized, strict=True):
        start = round((base - size) / 2)
        end = (start + size) * (num - 1) / num
        places.append(torch.linspace(start, end, num, dtype=torch.float32, device=u.device))
    return places
