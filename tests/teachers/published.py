# SPDX-License-Identifier: Apache-2.0
"""Networks of ours, written as EDM2 and edm2_sCM publish theirs: the way back of `edm2_maps`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from storage.persistent_replica import Node, tree, write_persistent
from torch import Tensor

from scm_lightning.networks import EDM2UNet

OF_A_BLOCK = {
    "conv1.weight": "conv_res0.weight",
    "conv2.weight": "conv_res1.weight",
    "skip.weight": "conv_skip.weight",
    "attention.out.weight": "attn_proj.weight",
}


def write_published(
    file: Path, network: EDM2UNet, weights: Mapping[str, Tensor], sigma_data: float, loss: str = ""
) -> Path:
    """Write the weights of a network as float32.

    Args:
        file: where.
        network: of `modulation` gain for EDM2, unscaled for edm2_sCM.
        weights: its weights by name.
        sigma_data: standard deviation of its data. Data units.
        loss: class of edm2_sCM's loss; empty for EDM2.
    """
    is_scm = bool(loss)
    tensors = _tensors(network, weights, is_scm)
    classes = {"": "TrigFlowPrecond" if is_scm else "Precond"}
    classes |= {"unet": "TrigFlowUNet" if is_scm else "UNet"}
    classes |= {"unet.enc": "ModuleDict", "unet.dec": "ModuleDict"}
    classes |= {"unet.emb_pos": "PositionalEmbedding", "unet.emb_fourier": "MPFourier"}
    blocks = {name.removesuffix(".conv_res0.weight") for name in tensors if "conv_res0" in name}
    classes |= dict.fromkeys(blocks, "Block")
    channels, side, _ = network.data_shape
    given = {"img_resolution": side, "img_channels": channels}
    given |= {"label_dim": network.conditioning.num_classes}
    heads = network.decoder[0].attention.num_heads
    built = {"channels_per_head": len(network.decoder[0].conv2.weight) // heads}
    net = tree(
        tensors,
        classes,
        kwargs={"": given | built},
        attributes={"": {**given, "sigma_data": sigma_data, "use_fp16": True}},
        buffers={name for name in tensors if name.endswith((".freqs", ".phases"))},
        default="MPConv",
    )
    numbers = {"P_mean": -1.0, "P_std": 1.4, "sigma_data": sigma_data}
    made_by = Node(loss, attributes=numbers, is_module=False) if is_scm else None
    style = "edm2_scm" if is_scm else "edm2"
    return write_persistent(file, net, style, loss_fn=made_by, dtype=torch.float32)


def _tensors(network: EDM2UNet, weights: Mapping[str, Tensor], is_scm: bool) -> dict[str, Tensor]:
    """Tensors by their published names, blocks in the order in which they run."""
    side = network.data_shape[1]
    found = {"unet.out_gain": weights["out_gain"][0] * (1 if is_scm else -1)}
    half = len(weights["input.weight"]) // 2
    if is_scm:
        found["unet.emb_pos.freqs"] = 10000.0 ** -(torch.arange(half) / (half - 1))
    else:
        position = "conditioning.position."
        found["unet.emb_fourier.freqs"] = weights[f"{position}frequencies"]
        found["unet.emb_fourier.phases"] = weights[f"{position}phases"]
    found["unet.emb_noise.weight"] = weights["conditioning.time.weight"]
    if "conditioning.label.weight" in weights:
        found["unet.emb_label.weight"] = weights["conditioning.label.weight"]
    found[f"unet.enc.{side}x{side}_conv.weight"] = weights["input.weight"]
    index = 0
    for place, block in enumerate(network.encoder):
        is_down = isinstance(block.resample, torch.nn.AvgPool2d)
        side, index = (side // 2, 0) if is_down else (side, index)
        name = f"enc.{side}x{side}_{'down' if is_down else f'block{index}'}"
        index += not is_down
        found |= _block(f"unet.{name}", f"encoder.{place}.", weights, block.attention, is_scm)
    for place, block in enumerate(network.decoder):
        is_up = isinstance(block.resample, torch.nn.Upsample)
        side, index = (side * 2, 0) if is_up else (side, index)
        last = "up" if is_up else f"in{place}" if place < 2 else f"block{index}"
        index = 0 if place < 2 else index + (not is_up)
        name = f"dec.{side}x{side}_{last}"
        found |= _block(f"unet.{name}", f"decoder.{place}.", weights, block.attention, is_scm)
    found["unet.out_conv.weight"] = weights["output.weight"]
    found["logvar_linear.weight"] = torch.zeros(1, 128)
    return found


def _block(
    name: str, own: str, weights: Mapping[str, Tensor], attention: object, is_scm: bool
) -> dict[str, Tensor]:
    found = {
        f"{name}.{theirs}": weights[f"{own}{mine}"]
        for mine, theirs in OF_A_BLOCK.items()
        if f"{own}{mine}" in weights
    }
    if is_scm:
        halves = [weights[f"{own}norm.{part}.weight"] for part in ("scale", "shift")]
        found[f"{name}.emb_linear.weight"] = torch.cat(halves)
    else:
        found[f"{name}.emb_linear.weight"] = weights[f"{own}norm.linear.weight"]
        found[f"{name}.emb_gain"] = weights[f"{own}norm.gain"][0]
    if attention is not None:
        # Blocked by query, key, value here; there all three of a channel stand together.
        qkv = weights[f"{own}attention.qkv.weight"]
        heads = qkv.reshape(3, attention.num_heads, -1, *qkv.shape[1:])
        found[f"{name}.attn_qkv.weight"] = heads.permute(1, 2, 0, 3, 4, 5).reshape(qkv.shape)
    return found
