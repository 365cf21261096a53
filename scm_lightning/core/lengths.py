# SPDX-License-Identifier: Apache-2.0
"""Lengths in optimizer steps: a number of them, or a share of the run.

    3000     steps
    0.5      this share of the run, `trainer.max_steps`; in (0, 1]
    None     the whole run

A share follows the run: `--trainer.max_steps 100` alone makes a short run with a full schedule.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Length = int | float | None
"""Optimizer steps: an int counts them, a float is a share of the run, None is all of it."""

_max_steps: ContextVar[int | None] = ContextVar("max_steps", default=None)


@contextmanager
def in_run(max_steps: int | None) -> Iterator[None]:
    """Tell what is built inside how long the run is, as `lr_schedule` is by the module.

    Args:
        max_steps: optimizer steps of the run; None if it has no such number.
    """
    token = _max_steps.set(max_steps)
    try:
        yield
    finally:
        _max_steps.reset(token)


def check_length(length: Length, name: str, least: int = 0) -> None:
    """Refuse what is no length.

    Args:
        length: steps, a share, or None.
        name: the option, for the message.
        least: fewest steps.

    Raises:
        ValueError: if there are fewer steps, or a share is not in (0, 1].
    """
    if length is None:
        return
    if isinstance(length, float) and not 0.0 < length <= 1.0:
        raise ValueError(
            f"{name} as a share of trainer.max_steps must be in (0, 1], got {length}; write a "
            "number of steps without a point, or null for the whole run"
        )
    if isinstance(length, int) and length < least:
        raise ValueError(f"{name} must be at least {least} optimizer steps, got {length}; raise it")


def steps_of(length: Length, name: str, max_steps: int | None = None) -> int:
    """Turn a length into optimizer steps; at least 1, if it is a share.

    Args:
        length: steps, a share, or None.
        name: the option, for the message.
        max_steps: optimizer steps of the run; None for those that `in_run` has told.

    Raises:
        ValueError: if it is a share, and the run has no number of steps.
    """
    if isinstance(length, int):
        return length
    whole = _max_steps.get() if max_steps is None else max_steps
    if whole is None:
        given = "null, the whole run" if length is None else f"{length}, a share of the run"
        raise ValueError(
            f"{name} is {given}, but the run has no number of steps; set trainer.max_steps, or "
            f"{name} to a number of steps"
        )
    return max(1, whole if length is None else round(length * whole))
