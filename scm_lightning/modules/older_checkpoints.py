# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of version 0.3.0, under the names of 0.4.0.

weights   weighting_head.*, vsd.*, and of MeanFlow network.*     were the module's own
kind      mean_flow                                              was a module, not an objective
"""

from typing import Any

from scm_lightning.storage.saved_run import METADATA_KEY

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


def _moved(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name
