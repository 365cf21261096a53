# SPDX-License-Identifier: Apache-2.0
"""Sizes of the U-Nets of EDM's files, read off the names and shapes of their weights.

    enc.SxS_conv, enc.SxS_down, enc.SxS_block0, ...    S from the image's side down
    dec.SxS_in0, dec.SxS_up, dec.SxS_block0, ...       and up again

Source: NVlabs/edm, training/networks.py, for the names.
Axes: C channels.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from scm_lightning.networks.unet_blocks import Resampling

CONVOLUTION = re.compile(r"enc\.(\d+)x\1_conv\.weight")
BLOCK = re.compile(r"enc\.(\d+)x\1_block(\d+)\.conv0\.weight")
Tensors = Mapping[str, Tensor]


class Place(NamedTuple):
    """Block of a U-Net.

    Attributes:
        name: its published name.
        side: side of its result. Pixels.
        width: channels of its level; a block that resamples keeps those it gets.
        resampling: "down", "up" or "none".
    """

    name: str
    side: int
    width: int
    resampling: Resampling


@dataclass(frozen=True)
class Layout:
    """Sizes of a U-Net of EDM.

    Attributes:
        data_shape: shape of one image, (C, H, W).
        out_channels: channels of the result.
        model_channels: channels of the features of the noise.
        first_channels: channels of the first convolution.
        emb_channels: channels of the embedding.
        widths: channels of every level, from the image's own size down.
        num_blocks: blocks per level on the way down, one more on the way up.
        num_classes: number of classes; 0 for none.
        augment_channels: augmentation labels; 0 for none.
        attention: names of the blocks with attention.
    """

    data_shape: tuple[int, int, int]
    out_channels: int
    model_channels: int
    first_channels: int
    emb_channels: int
    widths: tuple[int, ...]
    num_blocks: int
    num_classes: int
    augment_channels: int
    attention: frozenset[str]

    @classmethod
    def read(cls, tensors: Tensors) -> "Layout":
        """Read the sizes.

        Args:
            tensors: weights by their published names.

        Raises:
            ValueError: if it is no such network; the message is the reason alone.
        """
        first = [found for name in tensors if (found := CONVOLUTION.fullmatch(name))]
        blocks = [found for name in tensors if (found := BLOCK.fullmatch(name))]
        if len(first) != 1 or not blocks:
            raise ValueError("it is no U-Net of EDM, which has one enc.SxS_conv and enc.SxS_block0")
        side, num_blocks = int(first[0][1]), 1 + max(int(found[2]) for found in blocks)
        widths = {int(found[1]): len(tensors[found[0]]) for found in blocks}
        sides = sorted(widths, reverse=True)
        if sides != [side >> level for level in range(len(sides))]:
            raise ValueError(f"its levels have the sides {sides}, each must be half of the last")
        ends = [f"dec.{side}x{side}_aux_conv.weight", "out_conv.weight"]
        last = next((tensors[name] for name in ends if name in tensors), None)
        if last is None or "map_layer0.weight" not in tensors:
            raise ValueError(f"it has no {ends[0]} or no map_layer0.weight")
        return cls(
            data_shape=(tensors[first[0][0]].shape[1], side, side),
            out_channels=len(last),
            model_channels=tensors["map_layer0.weight"].shape[1],
            first_channels=len(tensors[first[0][0]]),
            emb_channels=len(tensors["map_layer0.weight"]),
            widths=tuple(widths[each] for each in sides),
            num_blocks=num_blocks,
            num_classes=_columns(tensors, "map_label.weight"),
            augment_channels=_columns(tensors, "map_augment.weight"),
            attention=frozenset(
                name.removesuffix(".qkv.weight") for name in tensors if name.endswith(".qkv.weight")
            ),
        )

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of every level, from the image's own down. Pixels."""
        return tuple(self.data_shape[1] >> level for level in range(len(self.widths)))

    def attending_sides(self) -> list[int]:
        """Sides of the levels with attention. Pixels."""
        return [side for side in self.sides if f"enc.{side}x{side}_block0" in self.attention]

    def down(self) -> list[Place]:
        """Blocks down, in their order."""
        places = []
        for level, (side, width) in enumerate(zip(self.sides, self.widths, strict=True)):
            if level:
                places.append(Place(f"enc.{side}x{side}_down", side, width, "down"))
            for index in range(self.num_blocks):
                places.append(Place(f"enc.{side}x{side}_block{index}", side, width, "none"))
        return places

    def middle(self) -> list[Place]:
        """The two blocks at the lowest level."""
        side, width = self.sides[-1], self.widths[-1]
        return [Place(f"dec.{side}x{side}_in{index}", side, width, "none") for index in range(2)]

    def up(self) -> list[Place]:
        """Blocks up, in their order."""
        places = []
        for side, width in reversed(list(zip(self.sides, self.widths, strict=True))):
            if side != self.sides[-1]:
                places.append(Place(f"dec.{side}x{side}_up", side, width, "up"))
            for index in range(self.num_blocks + 1):
                places.append(Place(f"dec.{side}x{side}_block{index}", side, width, "none"))
        return places


def check_names(found: Iterable[str], needed: Iterable[str]) -> None:
    """Refuse weights that a network lacks, or has no place for.

    Raises:
        ValueError: if they differ; the message is the reason alone.
    """
    found, needed = set(found), set(needed)
    if missing := sorted(needed - found):
        raise ValueError(f"it has no weight {missing[0]}")
    if extra := sorted(found - needed):
        raise ValueError(f"it has a weight {extra[0]} too many")


def _columns(tensors: Tensors, name: str) -> int:
    return tensors[name].shape[1] if name in tensors else 0
