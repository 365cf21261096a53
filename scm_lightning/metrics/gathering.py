# SPDX-License-Identifier: Apache-2.0
"""Gathering of the states of metrics, for torchmetrics' `dist_sync_fn`.

torchmetrics sends the empty state of a process as a tensor of another shape and type than the rows
of the others, which its own gathering cannot join. Objects may differ, and need no GPU under NCCL.
"""

from typing import Any

import torch
from torch import Tensor


def in_all_processes(state: Tensor, group: Any = None) -> list[Tensor]:
    """The states of all processes that have one. Called by all together."""
    states = [state] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(states, state.cpu(), group)
    return [each.to(state.device) for each in states if len(each)] or [state]


def in_first_process(rows: Any, group: Any = None) -> list[Any]:
    """The same in the first process alone: none in the others. Called by all together.

    Args:
        rows: a tensor on the CPU, or a list.
        group: the processes; all, if None.
    """
    processes = torch.distributed
    if not (processes.is_available() and processes.is_initialized()):
        return [rows]
    gathered: list[Any] = [rows] * processes.get_world_size(group)
    is_first = processes.get_rank(group) == 0
    processes.gather_object(rows, gathered if is_first else None, group=group)
    return (is_first and [each for each in gathered if len(each)]) or [rows[:0]]
