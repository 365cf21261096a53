# SPDX-License-Identifier: Apache-2.0
"""The classes that a network knows, and labels of others."""

from torch import Tensor, nn


class ClassConditioning(nn.Module):
    """A module that reads class labels in a network.

    Attributes:
        num_classes: number of classes; 0 for a network without labels.
    """

    num_classes: int


def num_known_classes(module: nn.Module) -> int:
    """Number of classes, from 0, that all networks in a module know; 0 if none says how many."""
    parts = (each for each in module.modules() if isinstance(each, ClassConditioning))
    return min((part.num_classes for part in parts if part.num_classes), default=0)


def reads_no_labels(module: nn.Module) -> bool:
    """Tell whether all networks in a module say that they know no class; others may know some."""
    parts = [each for each in module.modules() if isinstance(each, ClassConditioning)]
    return bool(parts) and not any(part.num_classes for part in parts)


def check_labels(labels: Tensor, num_classes: int, least: int = 0) -> None:
    """Refuse labels that a network does not know; a GPU's own error would not name them.

    Args:
        labels: class labels. (B,) int64.
        num_classes: number of classes that the network knows; 0 if it does not say.
        least: the smallest label: 0, or NULL_LABEL where a sample may have no class.

    Raises:
        ValueError: if a label is too small or too large.
    """
    if not len(labels):
        return
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < least:
        raise ValueError(
            f"labels must be at least {least}, got {smallest}; labels of None ask for no class"
        )
    if 0 < num_classes <= largest:
        raise ValueError(
            f"the data have a label {largest}, the network has {num_classes} classes from 0; set "
            "num_classes to that of your data"
        )
