# SPDX-License-Identifier: Apache-2.0
"""Weights of a diffusion run of this package, taken over as the teacher of a consistency run.

A checkpoint is never trusted to say which classes to build: the network comes from the
configuration, the weights from the file, and both must fit.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from scm_lightning.core import TrigFlow
from scm_lightning.storage import Export, SavedRun
from scm_lightning.storage.export import SUFFIX


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
    file = Path(file)
    found = Export.read(file) if file.suffix == SUFFIX else SavedRun.read(file).average()
    if found.module != "diffusion":
        raise ValueError(
            f"a teacher must be a diffusion run, {file} is a {found.module} run; give the "
            "checkpoint of the teacher"
        )
    if found.sigma_data != path.sigma_data:
        raise ValueError(
            f"teacher and student need the same sigma_data: {file} was trained with "
            f"{found.sigma_data}, the student has {path.sigma_data}; set path.sigma_data"
        )
    if mismatch := weights_mismatch(found.tensors, network):
        raise ValueError(
            f"the teacher {file} does not fit the student: {mismatch}; give the student the "
            "teacher's network settings"
        )
    teacher = copy.deepcopy(network)
    teacher.load_state_dict(found.tensors)
    vars(teacher)["licence"] = found.licence
    return teacher
