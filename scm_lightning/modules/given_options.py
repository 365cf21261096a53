# SPDX-License-Identifier: Apache-2.0
"""A resumed run takes its options from the configuration, and from the checkpoint only its state.

A checkpoint keeps the options of optimizer and schedule beside their state, and restoring brings
back both, so that a rate lowered between two starts of a run would change nothing:

    groups      lr, betas, weight_decay, ...     as configured
    schedule    as configured, at the position of the checkpoint
    averages    of gradients, restored; new ones for another optimizer
"""

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

OF_SCHEDULES = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}
"""Options that schedules add to a group."""


def class_name(optimizer: Optimizer) -> str:
    """Name of an optimizer's class, as a checkpoint keeps it."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def keep_options(optimizer: Optimizer, saved_class: str | None) -> None:
    """Let an optimizer keep its options when a state is loaded into it.

    Args:
        optimizer: as it was configured.
        saved_class: class of the optimizer of the checkpoint; None if the checkpoint does not say,
            as those of version 0.3.0, whose names of options tell it.
    """
    given = [_options(group) for group in optimizer.param_groups]

    def with_given_options(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        saved = state["param_groups"]
        if len(saved) != len(given):
            return state  # torch refuses it
        if reason := _new_averages(optimizer, saved_class, saved[0], state["state"]):
            rank_zero_info(f"{reason}: its averages of gradients start again from zero")
        groups = [
            {**own, "params": group["params"]} for own, group in zip(given, saved, strict=True)
        ]
        return {**state, "state": {} if reason else state["state"], "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(with_given_options)


def say_untrained(module: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Say which parameters would be trained, if an optimizer had them.

    Args:
        module: owner of all networks.
        optimizers: of the run.
    """
    groups = (group for each in optimizers for group in each.param_groups)
    known = {id(parameter) for group in groups for parameter in group["params"]}
    left = [n for n, x in module.named_parameters() if x.requires_grad and id(x) not in known]
    if left:
        rank_zero_warn(
            f"{len(left)} parameters with gradients are in no group of the optimizer and stay as "
            f"they are, the first of them {left[0]}; name them in parameter_groups"
        )


class KeptSchedule:
    """A schedule as it was configured, to replace a restored one.

    Args:
        schedule: at its beginning.
    """

    def __init__(self, schedule: LRScheduler) -> None:
        self._schedule = schedule
        self._beginning = copy.deepcopy(schedule.state_dict())

    def go_on(self, position: int) -> None:
        """Restore the configured options, and move the rates to a position.

        Args:
            position: how often the schedule was stepped.
        """
        schedule = self._schedule
        if isinstance(schedule, ReduceLROnPlateau):
            rank_zero_info("ReduceLROnPlateau keeps the options and rates of the checkpoint")
            return
        schedule.load_state_dict(copy.deepcopy(self._beginning))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimizer has not stepped in this process
            for _ in range(position):  # microseconds each
                schedule.step()


def go_on(trainer: Trainer, kept: Iterable[KeptSchedule]) -> None:
    """Let the schedules of a run go on where it is, with the options given now.

    Args:
        trainer: of the run, its checkpoint restored.
        kept: its schedules as they were configured, in its order.
    """
    for config, schedule in zip(trainer.lr_scheduler_configs, kept, strict=True):
        done = trainer.current_epoch if config.interval == "epoch" else trainer.global_step
        if position := config.scheduler.last_epoch or done:  # a new one is at 0
            schedule.go_on(position)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _new_averages(
    optimizer: Optimizer,
    saved_class: str | None,
    saved: Mapping[str, Any],
    states: Mapping[int, Mapping[str, Any]],
) -> str | None:
    """Reason why an optimizer cannot continue with a checkpoint's averages; None if it can."""
    own = class_name(optimizer)
    options = [{*_options(each)} - OF_SCHEDULES for each in (saved, optimizer.param_groups[0])]
    other = options[0] != options[1] if saved_class is None else saved_class != own
    if other:
        return f"the optimizer was {saved_class or 'another one'} and is {own}"
    kept = _names_of_state(optimizer)
    missing = kept - {name for state in states.values() for name in state}
    if states and missing:
        return f"the options of {own} ask for {', '.join(sorted(missing))}"
    return None


def _names_of_state(optimizer: Optimizer) -> set[str]:
    """Names of what an optimizer keeps per parameter, found by a step on a small one."""
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.zeros_like(parameter)
    group = {**_options(optimizer.param_groups[0]), "params": [parameter]}
    try:
        small = type(optimizer)([group])  # type: ignore[call-arg]  # those of a subclass
        small.step()
    except (TypeError, ValueError, RuntimeError):  # it needs other arguments or parameters
        return set()
    return {name for name, value in small.state[parameter].items() if torch.is_tensor(value)}
