# SPDX-License-Identifier: Apache-2.0
"""Weights of one network to hand on: a safetensors file, which any program reads without ours.

    FILE.safetensors = parameters and buffers of the network by name | metadata, strings all

    format              pt: names and layout of PyTorch; other libraries ask for it
    scm_format_version  1
    scm_version         version of this package that wrote it
    scm_module          kind of the run: diffusion, consistency, ...
    scm_sigma_data      standard deviation of the data; its digits read back as the same number
    scm_step            optimizer steps that are in the weights
    scm_weights         ema or trained
    scm_profile         of an average, as in tables: a sigma_rel, or a half-life in images
    scm_sha256          of names, types, shapes and bytes of all tensors

A safetensors file has no checksum of its own: without the last entry a flipped bit would be a
changed weight without a word. Trap: what is tied in the network is there under each of its names.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scm_lightning import __version__
from scm_lightning.whole_files import written_whole

SUFFIX = ".safetensors"
PREFIX = "scm_"
"""Of our entries, so that they stand apart from those of other programs."""
FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Export:
    """What the weights are of.

    Args:
        module: kind of the run.
        sigma_data: standard deviation of the data that the network is trained on. Data units.
        step: optimizer steps taken.
        weights: `ema` or `trained`.
        profile: short name of the average's profile; empty for trained weights, or if unknown.
    """

    module: str
    sigma_data: float
    step: int
    weights: str
    profile: str


def write_export(file: Path, export: Export, weights: Mapping[str, Tensor]) -> None:
    """Write the file; it is there whole or not at all.

    Args:
        file: where; an older one is replaced.
        export: what the weights are of.
        weights: parameters and buffers by name, on the CPU.

    Raises:
        OSError: if it cannot be written; an older one is left as it was.
    """
    # Own memory for each: the format refuses tensors that share some.
    copies = {
        name: weight.detach().clone(memory_format=torch.contiguous_format)
        for name, weight in weights.items()
    }
    entries = {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "module": export.module,
        "sigma_data": repr(export.sigma_data),
        "step": str(export.step),
        "weights": export.weights,
        "profile": export.profile,
        "sha256": _content_sha256(copies),
    }
    metadata = {f"{PREFIX}{name}": value for name, value in entries.items()}
    try:
        with written_whole(file) as beside:
            save_file(copies, beside, {"format": "pt"} | metadata)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{file} could not be written: {error}; give another place") from error


def read_export(file: Path) -> tuple[Export, dict[str, Tensor]]:
    """Read such a file.

    Args:
        file: the file.

    Returns:
        What the weights are of; parameters and buffers by name, on the CPU.

    Raises:
        ValueError: if it is missing, damaged, of a newer version or of another program.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}; write one with `scm export`, or give a .ckpt")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file, or a damaged one: {error}") from error
    version = metadata.get(f"{PREFIX}format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} must be an export of format {FORMAT_VERSION}, its metadata name "
            f"{'none' if version is None else version}; give a file that `scm export` wrote, or "
            "install a newer scm_lightning"
        )
    try:
        entry = {name.removeprefix(PREFIX): value for name, value in metadata.items()}
        export = Export(
            entry["module"],
            float(entry["sigma_data"]),
            int(entry["step"]),
            entry["weights"],
            entry["profile"],
        )
        is_whole = entry["sha256"] == _content_sha256(weights)
    except (KeyError, ValueError) as error:
        raise ValueError(f"the metadata of {file} are damaged: {error}; export it anew") from error
    if not is_whole:
        raise ValueError(f"{file} is damaged: its weights do not fit its checksum; export it anew")
    return export, weights


def _content_sha256(weights: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name].contiguous()
        sha256.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        sha256.update(weight.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
