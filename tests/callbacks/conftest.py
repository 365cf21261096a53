# SPDX-License-Identifier: Apache-2.0
"""The runs of two processes that the tests of the guards share: one program does them all."""

import pytest
from guarded_runs import do_all

JOBS = {
    "unbroken": {},
    "term": {"signal": "SIGTERM", "to": "rank 1", "hold": "train", "resume": True},
    "preempted": {"signal": "SIGUSR1", "to": "rank 0", "hold": "validation", "resume": True},
    "interrupt": {"signal": "SIGINT", "to": "all", "hold": "first"},
    "term twice": {"signal": "SIGTERM", "to": "all", "hold": "save", "times": 2},
    "at the start": {"signal": "SIGUSR1", "to": "rank 1", "hold": "loader"},
    "sharded": {"signal": "SIGTERM", "to": "each", "hold": "train", "strategy": "fsdp2"},
    "hung": {"signal": "SIGSTOP", "to": "rank 0", "hold": "validation", "timeout": 3},
    "killed": {"signal": "SIGKILL", "to": "rank 1", "hold": "train"},
    "bad": {"bad": [[5, 1], [22, 0]]},
    "bad sharded": {"bad": [[0, 1], [9, 0]], "strategy": "fsdp2", "clip": 0.5},
    "always bad": {"bad": [[number, 1] for number in range(4, 30, 2)], "max_in_a_row": 3},
    "nothing reduced": {"mistake": "nothing reduced"},
    "parameter too late": {"mistake": "parameter too late"},
    "bit flipped": {"mistake": "bit flipped"},
    "head left whole": {"mistake": "head left whole", "strategy": "fsdp2"},
}


@pytest.fixture(scope="session")
def guarded(tmp_path_factory):
    """Folder of the runs, and what came of them by name; see `guarded_runs`."""
    folder = tmp_path_factory.mktemp("guarded")
    return folder, do_all(JOBS, folder)
