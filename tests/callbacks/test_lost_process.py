# SPDX-License-Identifier: Apache-2.0
"""A process that is stopped or killed ends the other one, which says who it was."""

import pytest

from scm_lightning.callbacks import LostProcess


@pytest.mark.parametrize(
    ("name", "codes", "message"),
    [
        (
            "hung",
            [-9, 2],
            "0 of 2 is lost: it did not take part in all_reduce after step 4",
        ),
        (
            "killed",
            [2, -9],
            "1 of 2 is lost: it did not take part in the reduction of grad",
        ),
    ],
)
def test_the_others_end_and_name_it(guarded, name, codes, message):
    """The one that hangs has the store of the job, and does not end by itself."""
    found = guarded[1][name]["first"]
    assert found["codes"] == codes, found["log"]
    assert found["left"] == 0
    assert f"error: process {message}" in found["log"]


def test_an_impossible_timeout_is_refused():
    with pytest.raises(ValueError, match="at least 1 second, got 0"):
        LostProcess(timeout=0)
