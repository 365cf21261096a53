# SPDX-License-Identifier: Apache-2.0
"""States of callbacks in a checkpoint, without the options that some of them keep there."""

import inspect
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

PLACES = {"dirpath"}
"""Entries of a state that tell whether a run has moved, and are not the callback's options."""


def keep_given_options(callbacks: Iterable[Callback], states: dict[str, Any]) -> None:
    """Put the options of a run's callbacks into the states that they are about to restore.

    EarlyStopping's patience is such an option: a longer one would be without effect in a run that
    goes on. A timer starts anew, or `max_time` would end every run that goes on where it ended the
    last.

    Args:
        callbacks: as they were built.
        states: by `state_key`; changed.
    """
    for callback in callbacks:
        if isinstance(callback, Timer):
            states.pop(callback.state_key, None)
        state = states.get(callback.state_key)
        if isinstance(state, dict):
            for name in inspect.signature(type(callback)).parameters.keys() & state.keys() - PLACES:
                state[name] = getattr(callback, name, state[name])
