# SPDX-License-Identifier: Apache-2.0
"""DDPM++ of EDM and of edm2_sCM as this package's U-Net: the same numbers in other places.

Their features of the noise are sines before cosines, their queries, keys and values alternate row
by row, and their labels enter before the first layer, scaled by the root of their number.
Source: NVlabs/edm, training/networks.py; EpiGenomicsCode/edm2_sCM,
training/networks_trigflow_ddpmpp.py, for names and formulas.
Axes: C channels, D channels of a head.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scm_lightning.networks import TimeEmbedding, UNet
from scm_lightning.networks.unet_blocks import Norm
from scm_lightning.teachers.edm_layout import Layout, Tensors, check_names

IN_A_BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "norm2.added",
    "scale": "norm2.scale",
    "shift": "norm2.shift",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "skip",
    "norm2": "attention.norm",
    "qkv": "attention.qkv",
    "proj": "attention.out",
}
"""Names in a block of ours by theirs."""
OF_THE_CONDITIONS = {
    "map_layer0": "conditioning.time",
    "map_layer1": "conditioning.out",
    "map_augment": "conditioning.augment",
    "map_label": "conditioning.label",
    "map_t_k": "conditioning.end.linear",
}


def ddpmpp_from_edm(tensors: Tensors) -> UNet:
    """U-Net with the F of a DDPM++ of EDM, at c_noise in place of t; its sign is EDM's.

    Args:
        tensors: weights by their published names, without the prefix `model.`; float32 or wider.

    Raises:
        ValueError: if they are of another network; the message is the reason alone.
    """
    return _ddpmpp(tensors, "additive", dropout=0.0)


def ddpmpp_from_edm2_scm(tensors: Tensors, hyperparameters: Mapping[str, Any]) -> UNet:
    """U-Net with the F of a DDPM++ of edm2_sCM, a teacher or a student.

    Args:
        tensors: weights by their published names, without the prefix `unet.` and without the
            weighting of the loss; float32 or wider.
        hyperparameters: its `dropout`, which only training needs; 0 if missing.

    Raises:
        ValueError: if they are of another network; the message is the reason alone.
    """
    return _ddpmpp(tensors, "affine_double", dropout=float(hyperparameters.get("dropout", 0.0)))


def without_prefix(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Weights whose names begin so, without it."""
    return {
        name.removeprefix(prefix): weight
        for name, weight in tensors.items()
        if name.startswith(prefix)
    }


def _ddpmpp(tensors: Tensors, norm: Norm, dropout: float) -> UNet:
    layout = Layout.read(tensors)
    network = UNet(
        layout.data_shape,
        layout.model_channels,
        _multiples(layout),
        layout.num_blocks,
        [side for side in layout.sides if f"enc.{side}x{side}_block0" in layout.attention],
        dropout=dropout,
        num_classes=layout.num_classes,
        two_times="map_t_k.weight" in tensors,
        augment_channels=layout.augment_channels,
        time_embedding=TimeEmbedding(),
        norm=norm,
    )
    places = _places(layout, network, norm)
    found = _rearranged(tensors, norm)
    check_names(found, places)
    renamed = {places[name]: weight for name, weight in found.items()}
    for name, weight in network.state_dict().items():
        if renamed[name].shape != weight.shape:
            theirs = next(each for each, own in places.items() if own == name)
            raise ValueError(
                f"its weight {theirs} has shape {list(found[theirs].shape)} where "
                f"{list(weight.shape)} is needed"
            )
    network.to(next(iter(renamed.values())).dtype).load_state_dict(renamed)
    return network


def _multiples(layout: Layout) -> list[int]:
    """Channels of the levels in units of those of the features."""
    if any(width % layout.model_channels for width in layout.widths):
        raise ValueError(
            f"its levels have {list(layout.widths)} channels, each must be a multiple of the "
            f"{layout.model_channels} of its features: is it NCSN++?"
        )
    return [width // layout.model_channels for width in layout.widths]


def _places(layout: Layout, network: UNet, norm: Norm) -> dict[str, str]:
    """Names of the network's weights by their published names, after `_rearranged`."""
    side = layout.sides[0]
    modules = {
        f"enc.{side}x{side}_conv": "input",
        f"dec.{side}x{side}_aux_norm": "output_norm",
        f"dec.{side}x{side}_aux_conv": "output",
        **OF_THE_CONDITIONS,
    }
    parts = {"down": layout.down(), "middle": layout.middle(), "up": layout.up()}
    for part, places in parts.items():
        for index, place in enumerate(places):
            for theirs, own in IN_A_BLOCK.items():
                modules[f"{place.name}.{theirs}"] = f"{part}.{index}.{own}"
    named = {
        f"{theirs}.{kind}": f"{own}.{kind}"
        for theirs, own in modules.items()
        for kind in ("weight", "bias")
    }
    own_names = network.state_dict()
    return {theirs: own for theirs, own in named.items() if own in own_names}


def _rearranged(tensors: Tensors, norm: Norm) -> dict[str, Tensor]:
    """Weights as our layers want them, by published names but for `affine` of a double norm."""
    found: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        module, _, kind = name.rpartition(".")
        part = module.rpartition(".")[2]
        if kind == "resample_filter":
            if weight.shape != (1, 1, 2, 2) or bool((weight != 0.25).any()):
                raise ValueError(f"its {name} is not the mean of four pixels: is it NCSN++?")
        elif part == "qkv":
            found[name] = blocked(weight).flatten(1) if kind == "weight" else blocked(weight)
        elif part == "proj" and kind == "weight":
            found[name] = weight.flatten(1)
        elif part == "affine" and norm != "additive":
            prefix = module.removesuffix("affine")
            scale, shift = weight.chunk(2)
            found[f"{prefix}scale.{kind}"], found[f"{prefix}shift.{kind}"] = scale, shift
        else:
            found[name] = weight
    return _with_conditions(found)


def _with_conditions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of time, labels, augmentation and second time where ours enter, behind layer 0."""
    first = tensors["map_layer0.weight"]
    found = tensors | {"map_layer0.weight": _halves_swapped(first, 1)}
    if "map_augment.weight" in found:
        found["map_augment.weight"] = _halves_swapped(tensors["map_augment.weight"], 0)
    if "map_label.weight" in found:
        label = tensors["map_label.weight"]
        found["map_label.weight"] = math.sqrt(label.shape[1]) * (first @ label).T
        if "map_label.bias" in found and "map_layer0.bias" in found:
            found["map_layer0.bias"] = found["map_layer0.bias"] + first @ found.pop(
                "map_label.bias"
            )
    if "map_t_k.weight" in found:
        found["map_t_k.weight"] = _halves_swapped(first @ tensors["map_t_k.weight"], 1)
    return found


def _halves_swapped(weight: Tensor, axis: int) -> Tensor:
    """Cosines before sines where sines came before cosines."""
    return torch.cat(weight.chunk(2, axis)[::-1], axis)


def blocked(weight: Tensor, num_heads: int = 1) -> Tensor:
    """All rows of the queries, then of the keys, then of the values, where they alternate.

    Args:
        weight: rows q, k, v, q, k, v, ... of every head. (3C, ...).
        num_heads: heads, one after the other.
    """
    heads = weight.reshape(num_heads, -1, 3, *weight.shape[1:])
    return heads.permute(2, 0, 1, *range(3, heads.ndim)).reshape(weight.shape)
