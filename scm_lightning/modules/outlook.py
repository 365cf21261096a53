# SPDX-License-Identifier: Apache-2.0
"""Outlook on the learning rate and an objective's schedule, printed as training begins.

A warm-up or a schedule of another length than the run is the commonest reason for a run that fails;
here it costs a line, and not the run.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import partial

from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import LambdaLR

from scm_lightning.modules.schedules import FlatCosine
from scm_lightning.saying import say

MAX_LOOKED_AT = 1000
"""Steps of the run at which the largest rate is looked for."""
WHOLE_WARMUP = "set warmup.steps of model.init_args.objective to null for one as long as the run"
WHOLE_ALPHA = "set end of model.init_args.objective.init_args.schedule to a share such as 0.9"
WHOLE_SCHEDULE = "set total_steps of model.init_args.lr_schedule to null for one as long"


def say_outlook(trainer: Trainer, at_step: Callable[[int], Mapping[str, float]]) -> None:
    """Print what a run will come to; nothing if it has no number of steps.

    Args:
        trainer: of the run, as training begins.
        at_step: what of the loss changes with the step, by name.
    """
    if trainer.max_steps < 1 or not trainer.is_global_zero:
        return
    here = trainer.global_step
    end = int(trainer.estimated_stepping_batches)  # max_steps, or fewer by max_epochs
    words, hints = [], []
    if end < trainer.max_steps:
        hints.append(f"max_epochs ends the run before the {trainer.max_steps:,} of max_steps")
    for name, value in at_step(end).items():
        step = _reached(partial(_number, at_step, name), end)
        now = f" is {at_step(here)[name]:.2g} and" if here else ""
        words.append(f"{name}{now} reaches {value:.2g} at step {step:,}")
        hints += [WHOLE_WARMUP] if name == "r" and value < 1 else []
        if name == "alpha" and value > 0:
            hints.append(WHOLE_ALPHA)
    schedule = next((each.scheduler for each in trainer.lr_scheduler_configs), None)
    if isinstance(schedule, LambdaLR):
        rate = _rate(schedule)
        step = _reached(rate, end)
        largest = max(map(rate, range(0, end, -(-end // MAX_LOOKED_AT))))
        now = f"is {rate(here):.2g}, " if here else ""
        has_fallen = rate(end) < largest
        last = f", {rate(end):.2g} at step {step:,}" if has_fallen else ""
        words.append(f"learning rate {now}at most {largest:.2g}{last}")
        is_too_short = isinstance(schedule, FlatCosine) and has_fallen and step < end
        hints += [WHOLE_SCHEDULE] if is_too_short else []
    elif schedule is None and trainer.optimizers:
        words.append(f"learning rate {trainer.optimizers[0].param_groups[0]['lr']:.2g} throughout")
    if words:
        at = f"step {here:,} of {end:,}" if here else f"{end:,} steps"
        say("; ".join([f"{at}: {words[0]}", *words[1:], *hints]))


def _number(at_step: Callable[[int], Mapping[str, float]], name: str, step: int) -> float:
    return at_step(step)[name]


def _rate(schedule: LambdaLR) -> Callable[[int], float]:
    base, factor = schedule.base_lrs[0], schedule.lr_lambdas[0]
    return lambda step: float(base * factor(step))


def _reached(value: Callable[[int], float], end: int) -> int:
    """The step from which on a value is what it is at the end."""
    return bisect_left(range(end), True, key=lambda step: value(step) == value(end))
