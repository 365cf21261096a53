# SPDX-License-Identifier: Apache-2.0
"""The runs of one process that those of several are compared with."""

import pytest
from distributed_program import FILE_STEP, MAPPED
from distributed_runs import CASES, Place


@pytest.fixture(scope="session")
def alone(once):
    """Folder of the runs of test_distributed.py in this process, on the whole batch."""

    def make(folder):
        place = Place(folder / "auto1")
        place.folder.mkdir()
        for case in CASES:
            place.run(case)
        for stop in (FILE_STEP, 4):
            place.run("scd_dual", stop=stop)
        place.run("bf16")
        place.run(MAPPED, name="mapped", mapped=True)

    return once("distributed", make) / "auto1"
