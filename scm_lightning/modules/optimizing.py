# SPDX-License-Identifier: Apache-2.0
"""Factories of an optimizer and its schedule, and the optimizer's groups of parameters."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
ScheduleFactory = Callable[[Optimizer], LRScheduler]


def parameter_group(module: nn.Module, lr: float | None = None) -> dict[str, Any]:
    """A module's parameters as a group of the optimizer; `lr` None for the optimizer's own rate."""
    group: dict[str, Any] = {"params": list(module.parameters())}
    return group if lr is None else {**group, "lr": lr}


def check_rates(optimizer: Optimizer) -> None:
    """Refuse learning rates that train nothing.

    Raises:
        ValueError: if one is no finite number of at least 0.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    if not all(0 <= rate < math.inf for rate in rates):
        raise ValueError(
            f"a learning rate must be a finite number of at least 0, got {rates}; set lr of the "
            "optimizer, or weighting_lr"
        )
