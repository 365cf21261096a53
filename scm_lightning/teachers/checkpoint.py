# SPDX-License-Identifier: Apache-2.0
"""Weights of a diffusion run, taken over as the teacher of a consistency run.

A checkpoint is never trusted to say which classes to build: the network comes from the
configuration, the weights from the file, and both must fit.
"""

import copy
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scm_lightning.core import TrigFlow

METADATA_KEY = "scm_lightning"
"""Entry of a checkpoint that says what it holds; written by the modules, read here."""
EMA_PREFIX = "ema.network."
"""Where the modules keep the averaged network among their weights."""


def weights_mismatch(weights: Mapping[str, Tensor], module: nn.Module) -> str | None:
    """Say in one clause why weights do not fit a module, or None if they do.

    Args:
        weights: name to tensor.
        module: the module that should take them.
    """
    own = module.state_dict()
    for name in own:
        if name not in weights:
            return f"it has no weight '{name}'"
        if weights[name].shape != own[name].shape:
            return (
                f"its weight '{name}' has shape {tuple(weights[name].shape)} where "
                f"{tuple(own[name].shape)} is needed"
            )
    extra = sorted(set(weights) - set(own))
    return f"it has a weight '{extra[0]}' too many" if extra else None


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this package without running code from it.

    Raises:
        ValueError: if the file is missing, unreadable or from another program.
    """
    if not Path(file).is_file():
        raise ValueError(
            f"there is no checkpoint {file}; train first with `scm fit`, or give another path"
        )
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is no checkpoint, or a damaged one; give another path")
    try:
        checkpoint: dict[str, Any] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=True
        )
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict) or METADATA_KEY not in checkpoint:
        raise ValueError(
            f"{file} is not a checkpoint of scm_lightning; give one that `scm fit` wrote"
        )
    return checkpoint


def load_teacher(file: str | Path, network: nn.Module, path: TrigFlow) -> nn.Module:
    """Load the averaged weights of a diffusion run into a copy of a network.

    Args:
        file: a checkpoint written by `DiffusionModule`.
        network: network of the same architecture; the student. It is not changed.
        path: owner of the `sigma_data` that the teacher must have been trained with.

    Returns:
        The teacher's network.

    Raises:
        ValueError: if the file is missing or from another kind of run, or if network, number of
            classes or `sigma_data` do not fit.
    """
    checkpoint = read_checkpoint(file)
    metadata = checkpoint[METADATA_KEY]
    if metadata["module"] != "diffusion":
        raise ValueError(
            f"a teacher must be a diffusion run, {file} is a {metadata['module']} run; give the "
            "checkpoint of the teacher"
        )
    if metadata["sigma_data"] != path.sigma_data:
        raise ValueError(
            f"teacher and student need the same sigma_data: {file} was trained with "
            f"{metadata['sigma_data']}, the student has {path.sigma_data}; set path.sigma_data"
        )
    weights = {
        name.removeprefix(EMA_PREFIX): weight
        for name, weight in checkpoint["state_dict"].items()
        if name.startswith(EMA_PREFIX)
    }
    if mismatch := weights_mismatch(weights, network):
        raise ValueError(
            f"the teacher {file} does not fit the student: {mismatch}; give the student the "
            "teacher's network settings"
        )
    teacher = copy.deepcopy(network)
    teacher.load_state_dict(weights)
    return teacher
