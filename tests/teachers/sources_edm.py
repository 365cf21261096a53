# SPDX-License-Identifier: Apache-2.0
"""Small files of the structure of EDM's, with weights that denoise: trained here for seconds.

The published files can't be had in a test. These have their names, shapes, classes and nesting; the
networks are those of `edm_reference`, trained as written out there.
"""

import functools
import math
from pathlib import Path

import numpy as np
import torch
from storage.persistent_replica import tree, write_persistent
from teachers.edm_reference import NUMBERS, F_of, Weights, table
from teachers.toy import train_on_toy
from torch import Tensor

SHAPE, CLASSES, SIGMA_DATA = (3, 8, 8), 4, 0.5
KINDS = ("ddpmpp", "ncsnpp", "adm")
CLASS_NAMES = {"adm": "DhariwalUNet", "trigflow": "TrigFlowDDPMPPUNet"}
LEAVES = {"map_label": "Linear", "map_augment": "Linear", "map_layer0": "Linear"}
LEAVES |= {"map_layer1": "Linear", "map_t_k": "Linear", "affine": "Linear"}
LEAVES |= {"norm0": "GroupNorm", "norm1": "GroupNorm", "norm2": "GroupNorm"}
LEAVES |= {"out_norm": "GroupNorm", "enc": "ModuleDict", "dec": "ModuleDict"}


def shapes(
    kind: str,
    *,
    classes: int = CLASSES,
    augment: int = 9,
    widths: tuple[int, ...] = (16, 32),
    blocks: int = 1,
    attention: tuple[int, ...] = (8,),
    out: int = 3,
    two_times: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by their published names, in their order."""
    adm = kind == "adm"
    model = widths[0] * (2 if kind == "ncsnpp" else 1)
    emb, side = 4 * widths[0], SHAPE[1]
    found: dict[str, tuple[int, ...]] = {}

    def layer(name: str, rows: int, columns: int, size: int | None = None) -> None:
        found[f"{name}.weight"] = (rows, columns) if size is None else (rows, columns, size, size)
        if name != "map_augment" and name != "map_t_k" and (name != "map_label" or not adm):
            found[f"{name}.bias"] = (rows,)

    def norm(name: str, channels: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (channels,)

    def block(name: str, have: int, make: int, attend: bool) -> None:
        taps = 4 if kind == "ncsnpp" else 2
        resamples = name.endswith(("_up", "_down"))
        norm(f"{name}.norm0", have)
        layer(f"{name}.conv0", make, have, 3)
        if resamples:
            found[f"{name}.conv0.resample_filter"] = (1, 1, taps, taps)
        layer(f"{name}.affine", make * (2 if kind in ("adm", "trigflow") else 1), emb)
        norm(f"{name}.norm1", make)
        layer(f"{name}.conv1", make, make, 3)
        if have != make or (resamples and not adm):
            layer(f"{name}.skip", make, have, 1)
        if resamples:
            found[f"{name}.skip.resample_filter"] = (1, 1, taps, taps)
        if attend:
            norm(f"{name}.norm2", make)
            layer(f"{name}.qkv", 3 * make, make, 1)
            layer(f"{name}.proj", make, make, 1)

    if kind == "ncsnpp":
        found["map_noise.freqs"] = (model // 2,)
    if classes and not adm:
        layer("map_label", model, classes)
    if augment:
        layer("map_augment", model, augment)
    layer("map_layer0", emb, model)
    layer("map_layer1", emb, emb)
    if classes and adm:
        layer("map_label", emb, classes)
    if two_times:
        layer("map_t_k", model, model)
    channels, seen = widths[0], SHAPE[0]
    layer(f"enc.{side}x{side}_conv", channels, SHAPE[0], 3)
    kept = [channels]
    for level, width in enumerate(widths):
        at = f"enc.{side >> level}x{side >> level}"
        if level:
            block(f"{at}_down", channels, channels, False)
            kept.append(channels)
            if kind == "ncsnpp":
                layer(f"{at}_aux_residual", channels, seen, 3)
                found[f"{at}_aux_residual.resample_filter"] = (1, 1, 4, 4)
                seen = channels
        for index in range(blocks):
            block(f"{at}_block{index}", channels, width, side >> level in attention)
            channels = width
            kept.append(channels)
    for level, width in reversed(list(enumerate(widths))):
        at = f"dec.{side >> level}x{side >> level}"
        if level == len(widths) - 1:
            block(f"{at}_in0", channels, channels, True)
            block(f"{at}_in1", channels, channels, False)
        else:
            block(f"{at}_up", channels, channels, False)
        for index in range(blocks + 1):
            attend = side >> level in attention and (adm or index == blocks)
            block(f"{at}_block{index}", channels + kept.pop(), width, attend)
            channels = width
    norm("out_norm" if adm else f"dec.{side}x{side}_aux_norm", channels)
    layer("out_conv" if adm else f"dec.{side}x{side}_aux_conv", out, channels, 3)
    return found


def fixed(name: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Start of a weight: the same numbers everywhere, from a formula. float64."""
    if name.endswith("resample_filter"):
        line = torch.tensor([1.0, 1.0] if shape[-1] == 2 else [1.0, 3.0, 3.0, 1.0]).double()
        return (line[:, None] * line / line.sum() ** 2).reshape(shape)
    number = seed + sum((place + 1) * ord(letter) for place, letter in enumerate(name))
    angles = torch.arange(math.prod(shape)).double() * (1.1 + number % 97 / 61) + number
    wave = (angles + (3.7 * angles).sin() * 5).sin().reshape(shape)
    if name.endswith("freqs"):
        return 16 * wave
    if "norm" in name:
        return 0.1 * wave + (1 if name.endswith("weight") else 0)
    return wave * (math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1)


@functools.cache
def weights(kind: str, seed: int = 0, **options: object) -> Weights:
    """Weights that are trained for nothing, those of the recorded outputs; not to be changed."""
    given = {"widths": (64, 128), **options} if kind == "adm" else options
    return {
        name: fixed(name, shape, seed)
        for name, shape in shapes(kind, **given).items()  # type: ignore[arg-type]
    }


@functools.cache
def trained(kind: str, precond: str, classes: int) -> Weights:
    """Weights that denoise the toy data, float32; not to be changed."""
    widths = (64, 64) if kind == "adm" else (8, 16)
    out = 6 if precond == "iDDPMPrecond" else 3
    found = weights(kind, classes=classes, out=out, widths=widths)
    found = {name: each.float() for name, each in found.items()}
    for name, each in found.items():
        if name.endswith(("conv1.weight", "proj.weight", "_conv.weight")) and "x8_conv" not in name:
            each *= 0.1  # branches say little at first
    learned = [
        each.requires_grad_()
        for name, each in found.items()
        if not name.endswith(("resample_filter", "freqs", "map_augment.weight"))
    ]

    def F(u: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return F_of(found, u, t, labels, precond)

    steps, lr = (25, 2e-3) if kind == "adm" else (60, 4e-3)
    train_on_toy(
        F, learned, SHAPE, CLASSES, SIGMA_DATA, steps=steps, lr=lr, with_labels=classes > 0
    )
    return {name: each.detach() for name, each in found.items()}


def classes_of(names: list[str], kind: str, precond: str) -> dict[str, str]:
    """Names of the classes by the path of the module."""
    found = {"": precond, "model": CLASS_NAMES.get(kind, "SongUNet")}
    for name in names:
        parts = f"model.{name}".split(".")[:-1]
        for depth in range(2, len(parts) + 1):
            leaf = parts[depth - 1]
            is_block = leaf.endswith(("_up", "_down")) or "_block" in leaf or "_in" in leaf
            default = "UNetBlock" if is_block else "Conv2d"
            default = "GroupNorm" if leaf.endswith("_norm") else default
            found[".".join(parts[:depth])] = LEAVES.get(leaf, default)
    return found | {"model.map_noise": "FourierEmbedding"}


def attributes_of(precond: str, sigma_data: float) -> dict[str, object]:
    """Attributes of the outermost object."""
    if precond == "EDMPrecond":
        return {"sigma_data": sigma_data, "sigma_min": 0, "sigma_max": math.inf}
    if precond == "VEPrecond":
        return {"sigma_min": 0.02, "sigma_max": 100.0}
    if precond == "VPPrecond":
        low, high = ((9.95 * t**2 + 0.1 * t) for t in (1e-5, 1.0))
        sigmas = {"sigma_min": math.sqrt(math.expm1(low)), "sigma_max": math.sqrt(math.expm1(high))}
        return {**sigmas, "beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}
    u = table(int(NUMBERS["M"]), NUMBERS["C_1"], NUMBERS["C_2"])
    return {"sigma_min": float(u[999]), "sigma_max": float(u[0]), "M": 1000, "C_1": 1e-3}


def write_edm(
    folder: Path,
    kind: str = "ddpmpp",
    precond: str = "EDMPrecond",
    classes: int = CLASSES,
    dtype: torch.dtype = torch.float32,
    found: Weights | None = None,
    sigma_data: float = SIGMA_DATA,
) -> Path:
    """Write a small file as EDM publishes them; trained unless weights are given."""
    found = trained(kind, precond, classes) if found is None else found
    kwargs = {"img_resolution": SHAPE[1], "img_channels": SHAPE[0], "label_dim": classes}
    tensors = {f"model.{each}": weight for each, weight in found.items()}
    buffers = {each for each in tensors if each.endswith(("resample_filter", "freqs"))}
    if precond == "iDDPMPrecond":
        tensors = {"u": table(1000, NUMBERS["C_1"], NUMBERS["C_2"])} | tensors
        buffers.add("u")
    blocks = [each for each in tensors if each.endswith("norm0.weight")]
    scale = {each.removesuffix(".norm0.weight"): {"skip_scale": np.sqrt(0.5)} for each in blocks}
    net = tree(
        tensors,
        classes_of([*found], kind, precond),
        kwargs={"": {**kwargs, "model_type": CLASS_NAMES.get(kind, "SongUNet")}},
        attributes={
            "": {**kwargs, "use_fp16": True, **attributes_of(precond, sigma_data)},
            **scale,
        },
        buffers=buffers,
    )
    given = "cond" if classes else "uncond"
    file = folder / f"{'edm' if precond == 'EDMPrecond' else 'baseline'}-toy-8x8-{given}-{kind}.pkl"
    return write_persistent(file, net, "edm", dtype=dtype)
