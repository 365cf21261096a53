# SPDX-License-Identifier: Apache-2.0
"""Weights of a diffusion run, taken over as the teacher of a consistency run.

A checkpoint is never trusted to say which classes to build: the network comes from the
configuration, the weights from the file, and both must fit.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scm_lightning.core import TrigFlow
from scm_lightning.teachers.checkpoint_files import existing_checkpoints
from scm_lightning.teachers.checkpoint_parts import is_checkpoint, load_checkpoint
from scm_lightning.teachers.exports import SUFFIX, read_export

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
        ValueError: if the file is missing, damaged or from another program.
    """
    if not is_checkpoint(Path(file)):
        others = existing_checkpoints(Path(file).parent)
        advice = (
            "train first with `scm fit`, or give another path"
            if others == "none"
            else f"give one of those that are there: {others}"
        )
        raise ValueError(f"there is no checkpoint {file}; {advice}")
    if Path(file).suffix == SUFFIX:
        raise ValueError(
            f"{file} has weights only and is no checkpoint of a run; give the .ckpt file, and an "
            "export only as a teacher"
        )
    checkpoint = load_checkpoint(Path(file), mmap=True)
    if not _is_of_a_run(checkpoint):
        raise ValueError(
            f"{file} is not a checkpoint of scm_lightning; give one that `scm fit` wrote"
        )
    return checkpoint


def _is_of_a_run(checkpoint: Any) -> bool:
    """Whether a file holds what Lightning and the modules write, of the types they write."""
    if not isinstance(checkpoint, dict):
        return False
    metadata, state = checkpoint.get(METADATA_KEY), checkpoint.get("state_dict")
    return (
        isinstance(metadata, dict)
        and isinstance(metadata.get("module"), str)
        and isinstance(metadata.get("sigma_data"), int | float)
        and isinstance(state, dict)
        and all(isinstance(weight, Tensor) for weight in state.values())
        and "pytorch-lightning_version" in checkpoint
    )


def load_teacher(file: str | Path, network: nn.Module, path: TrigFlow) -> nn.Module:
    """Load the averaged weights of a diffusion run into a copy of a network.

    Args:
        file: a checkpoint written by `DiffusionModule`, or its export by `scm export`.
        network: network of the same architecture; the student. It is not changed.
        path: owner of the `sigma_data` that the teacher must have been trained with.

    Returns:
        The teacher's network.

    Raises:
        ValueError: if the file is missing or from another kind of run, or if network, number of
            classes or `sigma_data` do not fit.
    """
    module, sigma_data, weights = _network_of(file)
    if module != "diffusion":
        raise ValueError(
            f"a teacher must be a diffusion run, {file} is a {module} run; give the checkpoint of "
            "the teacher"
        )
    if sigma_data != path.sigma_data:
        raise ValueError(
            f"teacher and student need the same sigma_data: {file} was trained with "
            f"{sigma_data}, the student has {path.sigma_data}; set path.sigma_data"
        )
    if mismatch := weights_mismatch(weights, network):
        raise ValueError(
            f"the teacher {file} does not fit the student: {mismatch}; give the student the "
            "teacher's network settings"
        )
    teacher = copy.deepcopy(network)
    teacher.load_state_dict(weights)
    return teacher


def _network_of(file: str | Path) -> tuple[str, float, dict[str, Tensor]]:
    """Kind of the run, `sigma_data`, and weights of an export or of a checkpoint's average."""
    if Path(file).suffix == SUFFIX:
        export, exported = read_export(Path(file))
        return export.module, export.sigma_data, exported
    checkpoint = read_checkpoint(file)
    metadata = checkpoint[METADATA_KEY]
    weights = {
        name.removeprefix(EMA_PREFIX): weight
        for name, weight in checkpoint["state_dict"].items()
        if name.startswith(EMA_PREFIX)
    }
    return metadata["module"], metadata["sigma_data"], weights
