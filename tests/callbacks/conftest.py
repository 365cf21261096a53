# SPDX-License-Identifier: Apache-2.0
"""The runs of two processes that the tests of the guards share: one program does them all."""

import json

import pytest
from guarded_runs import do_all

JOBS = {
    "unbroken": {},
    "term": {"signal": "SIGTERM", "to": "rank 1", "hold": "train", "resume": True},
    "preempted": {"signal": "SIGUSR1", "to": "rank 0", "hold": "validation"},
    "interrupt": {"signal": "SIGINT", "to": "all", "hold": "first"},
    "term twice": {"signal": "SIGTERM", "to": "all", "hold": "save", "times": 2},
    "sharded": {"signal": "SIGTERM", "to": "each", "hold": "train", "strategy": "fsdp2"},
    "hung": {
        **{"signal": "SIGSTOP", "to": "rank 0", "hold": "validation", "timeout": 6},
        "store": "first",
    },
    "killed": {"signal": "SIGKILL", "to": "rank 1", "hold": "train"},
    "paused": {"signal": "SIGSTOP", "to": "rank 0", "hold": "train", "timeout": 20, "paused": 3},
    # Longer than anybody waits for the end of a job: it does not end by its timeout.
    "fails in 0": {"mistake": "fails in 0", "timeout": 1800},
    "fails in 1": {"mistake": "fails in 1", "timeout": 1800},
    "fails everywhere": {"mistake": "fails everywhere", "timeout": 1800},
    "bad": {"bad": [[5, 1], [22, 0]]},
    "bad sharded": {"bad": [[0, 1], [9, 0]], "strategy": "fsdp2", "clip": 0.5},
    "always bad": {"bad": [[number, 1] for number in range(4, 30, 2)], "max_in_a_row": 3},
    "nothing reduced": {"mistake": "nothing reduced"},
    "parameter too late": {"mistake": "parameter too late"},
    "unused": {"mistake": "unused"},
    "unused unchecked": {"mistake": "unused", "unchecked": True},
    "unused in 1": {"mistake": "unused in 1", "timeout": 1800},
    "unused, looked for": {"mistake": "unused", "strategy": "ddp_find_unused_parameters_true"},
    "bit flipped": {"mistake": "bit flipped"},
    "whole in parts": {"strategy": "fsdp2", "clip": 0.5},
    "unchecked": {"strategy": "fsdp2", "clip": 0.5, "unchecked": True},
    "slice kept": {"mistake": "slice kept", "strategy": "fsdp2"},
    "process forgotten": {"mistake": "process forgotten", "strategy": "fsdp2"},
    "slices swapped": {"mistake": "slices swapped", "strategy": "fsdp2"},
    "sync left off": {"mistake": "sync left off", "strategy": "fsdp2"},
    "head left whole": {"mistake": "head left whole", "strategy": "fsdp2"},
}
SLOW = {
    *("term twice", "paused", "parameter too late", "unused unchecked", "unused, looked for"),
    *("slice kept", "sync left off"),
}
"""Runs that differ little from another one."""


@pytest.fixture(scope="session")
def guarded(once, request):
    """Folder of the runs, and what came of them by name; see `guarded_runs`."""
    left_out = SLOW if request.config.option.markexpr == "not slow" else ()
    jobs = {name: job for name, job in JOBS.items() if name not in left_out}
    folder = once("guarded", lambda folder: do_all(jobs, folder))
    return folder, json.loads((folder / "results.json").read_text())


def of_slow(item):
    name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
    return "guarded" in getattr(item, "fixturenames", ()) and name in SLOW


def pytest_collection_modifyitems(items):
    """All these runs are the set-up of whichever test comes first: a minute, more beside others."""
    for item in items:
        if "guarded" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(900))
        if of_slow(item):
            item.add_marker(pytest.mark.slow)
