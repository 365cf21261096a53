# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a module is handed: those of 0.3.0 under the names of 0.4.0, none of others.

weights   weighting_head.*, vsd.*, and of MeanFlow network.*     were the module's own
kind      mean_flow                                              was a module, not an objective
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from scm_lightning.storage.saved_run import METADATA_KEY
from scm_lightning.teachers import weights_mismatch

MOVED = {
    "consistency": {"weighting_head.": "objective.weighting_head.", "vsd.": "terms.0."},
    "mean_flow": {"network.": "student."},
}


def update_names(checkpoint: dict[str, Any]) -> None:
    """Rename what a checkpoint of 0.3.0 holds; any other stays as it is.

    Args:
        checkpoint: what was read; changed.
    """
    metadata = checkpoint.get(METADATA_KEY, {})
    kind = metadata.get("module")
    if "objective" in metadata or kind not in MOVED:
        return
    weights = checkpoint["state_dict"]
    for old, new in MOVED[kind].items():
        weights = {_moved(name, old, new): weight for name, weight in weights.items()}
    checkpoint["state_dict"] = weights
    # Which objective a consistency run had it does not say: its weights are compared.
    of_mean_flow = {"module": "consistency", "objective": "MeanFlow"}
    checkpoint[METADATA_KEY] = {**metadata, **(of_mean_flow if kind == "mean_flow" else {})}


def check_fits(
    checkpoint: Mapping[str, Any],
    module: nn.Module,
    needed: Mapping[str, Any],
    parts: Mapping[str, str],
) -> None:
    """Refuse a checkpoint of another model.

    Args:
        checkpoint: what was read, under the names of this version.
        module: what it is loaded into.
        needed: what its metadata must say.
        parts: what they must say too, if they say anything of it.

    Raises:
        ValueError: if they say something else, or a weight does not fit.
    """
    metadata = checkpoint.get(METADATA_KEY, {})
    known = {key: each for key, each in parts.items() if key in metadata}
    for key, own in {**needed, **known}.items():
        if metadata.get(key) != own:
            raise ValueError(
                f"the checkpoint must be of a run with {key} {own}, got {metadata.get(key)}; "
                "give the checkpoint that belongs to this configuration"
            )
    if mismatch := weights_mismatch(checkpoint["state_dict"], module):
        raise ValueError(
            f"the checkpoint does not fit the model: {mismatch}; give the checkpoint that "
            "belongs to this configuration"
        )


def _moved(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


def name_in(module: nn.Module, part: nn.Module) -> str:
    """Name of a part of a module."""
    return str(next(name for name, each in module.named_modules() if each is part))
