# SPDX-License-Identifier: Apache-2.0
"""Lengths in steps, as shares of a run, and as all of it."""

import pytest

from scm_lightning.core import TangentWarmup, check_length, in_run, steps_of


@pytest.mark.parametrize(
    ("length", "max_steps", "steps"),
    [
        *((3000, None, 3000), (0, None, 0), (1, 100, 1), (1.0, 100, 100), (None, 100, 100)),
        *((0.0192, 2600, 50), (0.0167, 3000, 50), (0.5, 3, 2), (1e-9, 3000, 1), (None, 0, 1)),
    ],
)
def test_a_length_is_steps_a_share_or_the_run(length, max_steps, steps):
    check_length(length, "steps")
    assert steps_of(length, "steps", max_steps) == steps
    if max_steps:
        with in_run(max_steps):
            assert steps_of(length, "steps") == steps


def test_a_share_needs_a_run():
    """What an inner run says is forgotten after it."""
    with in_run(7), pytest.raises(RuntimeError), in_run(9):
        raise RuntimeError
    for length, said in ((None, "null, the whole run"), (0.25, "0.25, a share of the run")):
        with pytest.raises(ValueError, match=f"ramp_steps is {said}, .* set trainer.max_steps, or"):
            steps_of(length, "ramp_steps")


@pytest.mark.parametrize("length", [0.0, -0.5, 1.5, 3000.0, float("nan")])
def test_a_share_is_above_0_and_at_most_1(length):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got .* without a point, or null"):
        check_length(length, "warmup.steps")


def test_a_warm_up_of_a_share():
    """r is that of the same warm-up in steps."""
    share, steps = TangentWarmup(0.3), TangentWarmup(60)
    assert [share.r(n, 200) for n in range(100)] == [steps.r(n) for n in range(100)]
    assert TangentWarmup(None).r(150, 200) == 0.75
    with pytest.raises(ValueError, match=r"warmup\.steps is 0.3, a share"):
        share.r(0)
