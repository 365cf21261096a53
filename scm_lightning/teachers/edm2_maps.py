# SPDX-License-Identifier: Apache-2.0
"""U-Nets of EDM2 and edm2_sCM as this package's: the same numbers in other places.

    EDM2        F = -output, a gain, random features of log(sigma) / 4
    edm2_sCM    F = output, scale and shift, positional features of t

Queries, keys and values alternate row by row; both normalise with a constant beside the root.
Source: NVlabs/edm2, training/networks_edm2.py; EpiGenomicsCode/edm2_sCM,
training/networks_trigflow.py, for names and formulas. Axes: C channels.
"""

import math
import re
from typing import Any

import torch
from torch import Tensor

from scm_lightning.networks import EDM2UNet, TimeEmbedding
from scm_lightning.storage.persistent_pickle import PersistentObject
from scm_lightning.teachers.edm_layout import Layout, Tensors, check_names
from scm_lightning.teachers.edm_maps import blocked, without_prefix
from scm_lightning.teachers.own_runs import weights_mismatch

CONVOLUTION = re.compile(r"enc\.(\d+)x\1_conv\.weight")
BLOCK = re.compile(r"enc\.(\d+)x\1_block(\d+)\.conv_res0\.weight")
IN_A_BLOCK = {
    "conv_res0.weight": "conv1.weight",
    "conv_res1.weight": "conv2.weight",
    "conv_skip.weight": "skip.weight",
    "attn_qkv.weight": "attention.qkv.weight",
    "attn_proj.weight": "attention.out.weight",
    "emb_linear.weight": "norm.linear.weight",
    "emb_gain": "norm.gain",
    "emb_scale.weight": "norm.scale.weight",
    "emb_shift.weight": "norm.shift.weight",
}
"""Names in a block of ours by theirs; edm2_sCM's `emb_linear` is taken apart before."""
OF_THE_NETWORK = {
    "emb_fourier.freqs": "conditioning.position.frequencies",
    "emb_fourier.phases": "conditioning.position.phases",
    "emb_noise.weight": "conditioning.time.weight",
    "emb_label.weight": "conditioning.label.weight",
    "emb_t_k.weight": "conditioning.end.linear.weight",
    "out_conv.weight": "output.weight",
    "out_gain": "out_gain",
}
FIXED = {
    "resample_filter": [1, 1],
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "channel_mult_noise": None,
    "channel_mult_emb": None,
}
"""Options that the published networks leave as they are."""
HEAD_CHANNELS = 64
"""Channels of a head of the published networks."""
ROUNDING, SUBNORMAL = 2**-11, 2**-25
"""Largest errors of a number in half precision, relative and of the smallest ones."""


def edm2_unet(net: PersistentObject, *, is_trigflow: bool) -> EDM2UNet:
    """U-Net with the F of a network of EDM2, or of edm2_sCM if it is of TrigFlow.

    Args:
        net: the network of a file.
        is_trigflow: whether it is one of edm2_sCM, a teacher or a student.

    Raises:
        ValueError: if it is another network; the message is the reason alone.
    """
    given = net.init_kwargs
    for name, value in FIXED.items():
        if given.get(name, value) != value:
            raise ValueError(
                f"it was built with {name} {given[name]!s:.40}, all published ones with {value}"
            )
    options = edm2_options(net, is_trigflow=is_trigflow)
    if not is_trigflow:
        sigma_data = float(net.attribute("sigma_data"))
        options["time_embedding"] = TimeEmbedding("log", "mp_fourier", sigma_data)
    tensors = without_prefix(net.state_dict(), "unet.")
    layout, network = _layout(tensors), EDM2UNet(**options)
    found = _rearranged(tensors, layout, options["channels_per_head"], is_trigflow)
    _fill(network, found, _places(layout, network))
    return network


def edm2_options(net: PersistentObject, *, is_trigflow: bool) -> dict[str, Any]:
    """Options of the `EDM2UNet` with the F of a network, but its embedding of the time.

    Args:
        net: the network of a file.
        is_trigflow: whether it is one of edm2_sCM.

    Raises:
        ValueError: if it is another network; the message is the reason alone.
    """
    tensors = without_prefix(net.state_dict(), "unet.")
    layout = _layout(tensors)
    dropout, dropout_pixels = dropout_of(net)
    return {
        "data_shape": list(layout.data_shape),
        "model_channels": layout.model_channels,
        "channel_mult": [width // layout.model_channels for width in layout.widths],
        "num_blocks": layout.num_blocks,
        "attention_pixels": layout.attending_sides(),
        "channels_per_head": _head_channels(
            net.init_kwargs.get("channels_per_head", HEAD_CHANNELS), layout
        ),
        "num_classes": layout.num_classes,
        "two_times": "emb_t_k.weight" in tensors,
        "dropout": dropout,
        "dropout_pixels": dropout_pixels or layout.data_shape[1],
        "modulation": "unscaled" if is_trigflow else "gain",
        "exact_norm": True,
    }


def _layout(tensors: Tensors) -> Layout:
    """Sizes of a network, by the names and shapes of its weights."""
    first = [found for name in tensors if (found := CONVOLUTION.fullmatch(name))]
    blocks = [found for name in tensors if (found := BLOCK.fullmatch(name))]
    needed = {"emb_noise.weight", "out_conv.weight", "out_gain"}
    if len(first) != 1 or not blocks or not needed <= tensors.keys():
        raise ValueError(
            "it is no U-Net of EDM2, which has one enc.SxS_conv, enc.SxS_block0, emb_noise, "
            "out_conv and out_gain"
        )
    side, weight = int(first[0][1]), tensors[first[0][0]]
    widths = {int(found[1]): len(tensors[found[0]]) for found in blocks}
    sides = sorted(widths, reverse=True)
    if sides != [side >> level for level in range(len(sides))] or any(
        width % len(weight) for width in widths.values()
    ):
        raise ValueError(
            f"its levels have sides {sides} and {list(widths.values())} channels; each must have "
            f"half the side of the last, and a multiple of {len(weight)} channels"
        )
    label = tensors.get("emb_label.weight")
    return Layout(
        data_shape=(weight.shape[1] - 1, side, side),
        out_channels=len(tensors["out_conv.weight"]),
        model_channels=len(weight),
        first_channels=len(weight),
        emb_channels=len(tensors["emb_noise.weight"]),
        widths=tuple(widths[each] for each in sides),
        num_blocks=1 + max(int(found[2]) for found in blocks),
        num_classes=0 if label is None else label.shape[1],
        augment_channels=0,
        attention=frozenset(
            name.removesuffix(".attn_qkv.weight")
            for name in tensors
            if name.endswith(".attn_qkv.weight")
        ),
    )


def _head_channels(given: object, layout: Layout) -> int:
    widths = {place.width for place in layout.middle()}
    if not isinstance(given, int) or given < 1 or any(width % given for width in widths):
        raise ValueError(f"its heads have {given!s:.20} channels, which must divide {widths}")
    return given


def dropout_of(net: PersistentObject) -> tuple[float, int | None]:
    """Dropout of a later training, and the largest side that it acts at, as its blocks say it.

    Args:
        net: the network of a file.
    """
    for block in net.children["unet"].children["dec"].children.values():
        rate, sides = block.state.get("dropout"), block.state.get("dout_resolutions")
        if isinstance(rate, int | float):
            return float(rate), int(max(sides)) if isinstance(sides, list | tuple) else None
    return 0.0, None


def _places(layout: Layout, network: EDM2UNet) -> dict[str, str]:
    """Names of the network's weights by their published names, after `_rearranged`."""
    side = layout.sides[0]
    named = {f"enc.{side}x{side}_conv.weight": "input.weight", **OF_THE_NETWORK}
    parts = {"encoder": layout.down(), "decoder": layout.middle() + layout.up()}
    for part, places in parts.items():
        for index, place in enumerate(places):
            for theirs, own in IN_A_BLOCK.items():
                named[f"{place.name}.{theirs}"] = f"{part}.{index}.{own}"
    own_names = network.state_dict()
    return {theirs: own for theirs, own in named.items() if own in own_names}


def _rearranged(
    tensors: Tensors, layout: Layout, head_channels: int, is_trigflow: bool
) -> dict[str, Tensor]:
    """Weights as our layers want them, by published names but for the halves of `emb_linear`."""
    found: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        if name == "emb_pos.freqs":
            _check_positional(weight, layout.model_channels)
        elif name.endswith("attn_qkv.weight"):
            found[name] = blocked(weight, len(weight) // (3 * head_channels))
        elif name.endswith("emb_linear.weight") and is_trigflow:
            prefix = name.removesuffix("linear.weight")
            found[f"{prefix}scale.weight"], found[f"{prefix}shift.weight"] = weight.chunk(2)
        elif name.endswith("emb_gain"):
            found[name] = weight.reshape(1)
        elif name == "out_gain":
            found[name] = weight.reshape(1) * (1 if is_trigflow else -1)
        elif name == "emb_t_k.weight":  # theirs has features of sqrt(2), and half a share of labels
            found[name] = weight * (1 if layout.num_classes else math.sqrt(2))
        else:
            found[name] = weight
    return found


def _check_positional(frequencies: Tensor, num_channels: int) -> None:
    """Refuse other frequencies than ours, which are those of training; stored ones are rounded."""
    half = num_channels // 2
    own = 10000.0 ** -(torch.arange(half) / (half - 1))
    if frequencies.shape != own.shape or bool(
        ((frequencies - own).abs() > ROUNDING * own + SUBNORMAL).any()
    ):
        raise ValueError("its emb_pos.freqs are not 10000^(-i / (n / 2 - 1))")


def _fill(network: EDM2UNet, found: dict[str, Tensor], places: dict[str, str]) -> None:
    """Give the network its weights."""
    check_names(found, places)
    renamed = {places[theirs]: weight for theirs, weight in found.items()}
    if mismatch := weights_mismatch(renamed, network):
        raise ValueError(mismatch)
    network.load_state_dict(renamed)
