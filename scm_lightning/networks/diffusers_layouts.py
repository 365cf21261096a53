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
    """Cosine and sine of the positions of HunyuanDiT, whose base is 512 pixels."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    height, width = (each // config.patch_size for each in u.shape[-2:])
    base = 512 // 8 // config.patch_size
    cos, sin = get_2d_rotary_pos_embed(
        config.attention_head_dim,
        _region(height, width, base, base),
        (height, width),
        device=u.device,
        output_type="pt",
    )
    return cos, sin


def cogvideo_rotations(config: Any, u: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the positions of CogVideoX: of patches, or of blocks in 1.5."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    size = config.patch_size
    frames, height, width = u.shape[-3], u.shape[-2] // size, u.shape[-1] // size
    base = config.sample_height // size, config.sample_width // size
    if config.patch_size_t is None:
        grid: dict[str, Any] = {
            "crops_coords": _region(height, width, *base),
            "temporal_size": frames,
        }
    else:
        grid = {
            "crops_coords": None,
            "temporal_size": -(-frames // config.patch_size_t),
            "grid_type": "slice",
            "max_size": base,
        }
    dim = config.attention_head_dim
    cos, sin = get_3d_rotary_pos_embed(dim, grid_size=(height, width), device=u.device, **grid)
    return cos, sin


def _region(
    height: int, width: int, base_height: int, base_width: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corners of a grid that is scaled into the base in which a model learned its positions.

    Source: `get_resize_crop_region_for_grid` of diffusers' pipelines of HunyuanDiT and CogVideoX.
    """
    if height / width > base_height / base_width:
        resized = base_height, round(base_height / height * width)
    else:
        resized = round(base_width / width * height), base_width
    top, left = round((base_height - resized[0]) / 2), round((base_width - resized[1]) / 2)
    return (top, left), (top + resized[0], left + resized[1])
