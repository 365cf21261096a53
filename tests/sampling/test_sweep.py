# SPDX-License-Identifier: Apache-2.0
"""A sweep's rows and what they stand for: names, times, scales."""

import math

import pytest
import torch
from gaussian import PATH

from scm_lightning.core import Conditions, Segments, sample_generators
from scm_lightning.sampling import (
    EqualJumps,
    FreshNoise,
    SamplerSweep,
    SegmentJumps,
    SweepPoint,
    few_step_draw,
)

T_MAX = PATH.t_max()


class Recorder:
    """F = 0, and what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, u, t, labels, guidance, t_end=None):
        ends = None if t_end is None else float(t_end[0])
        self.calls.append((float(t[0]), None if guidance is None else guidance.tolist(), ends))
        return torch.zeros_like(u)


def drawn(draw):
    generators = sample_generators(range(5), seed=2)
    noise = PATH.sigma_data * torch.randn(5, 3, dtype=torch.float64)
    return draw(noise, Conditions(), generators)


def test_rows_are_all_combinations_and_one_step_is_there_once():
    sweep = SamplerSweep((1, 2), (0.6, 1.0), (1.5,), "all")
    assert list(sweep.points(["0.05", "0.5M"])) == [
        "1_step guidance=1.5 ema=0.05",
        "1_step guidance=1.5 ema=0.5M",
        "2_step t_mid=0.6 guidance=1.5 ema=0.05",
        "2_step t_mid=0.6 guidance=1.5 ema=0.5M",
        "2_step t_mid=1 guidance=1.5 ema=0.05",
        "2_step t_mid=1 guidance=1.5 ema=0.5M",
    ]


def test_a_name_says_what_the_sweep_sets_and_nothing_else():
    """And does not change with a second value."""
    averages = ["0.05", "0.1"]
    assert list(SamplerSweep().points(averages)) == ["1_step", "2_step"]
    one, two = (SamplerSweep((4,), times).points(averages) for times in ([0.7], [0.7, 0.8]))
    assert list(one) == ["4_step t_mid=0.7"]
    assert set(one) < set(two)
    found = SamplerSweep((1,), ema=[1]).points(averages)
    assert found == {"1_step ema=0.1": SweepPoint(1, ema="0.1", average=1)}


@pytest.mark.parametrize(
    ("point", "times"),
    [
        (SweepPoint(1), [T_MAX]),
        (SweepPoint(2), [T_MAX, 1.2]),
        (SweepPoint(2, t_mid=0.7), [T_MAX, 0.7]),
        (SweepPoint(3, t_mid=0.7), [T_MAX, (T_MAX + 0.7) / 2, 0.7]),
        (
            SweepPoint(5, t_mid=0.4),
            [T_MAX, *(0.4 + share * (T_MAX - 0.4) for share in (0.75, 0.5, 0.25)), 0.4],
        ),
    ],
)
def test_times_reach_the_network(point, times):
    """Evenly spaced down to t_mid; without one, the run's own."""
    network, steps = Recorder(), FreshNoise()
    found = steps.times(point.num_steps, point.t_mid, (1.2,), PATH)
    drawn(few_step_draw(network, steps, found, PATH, None))
    assert [t for t, _, _ in network.calls] == pytest.approx(times, rel=1e-12)


def test_numbers_of_steps_are_those_of_the_model_unless_asked_for():
    assert FreshNoise().own_numbers(None, (1.2, 0.4)) == [1, 2, 3]
    assert SegmentJumps(Segments(4)).own_numbers(None, (1.2, 0.4)) == [4]
    assert EqualJumps().own_numbers(None, ()) == [1, 2]
    assert FreshNoise().own_numbers([2], (1.2, 0.4)) == EqualJumps().own_numbers([2], ()) == [2]


def test_segments_and_mean_flow_are_sampled_at_their_own_times():
    """Edges of the segments; equal parts of t_max."""
    network = Recorder()
    for steps, scale in ((SegmentJumps(Segments(2)), 1.6), (EqualJumps(), None)):
        drawn(few_step_draw(network, steps, steps.times(2, None, (), PATH), PATH, scale))
    starts, scales, ends = zip(*network.calls, strict=True)
    assert starts == pytest.approx([T_MAX, math.pi / 4, T_MAX, T_MAX / 2])
    assert ends == pytest.approx([math.pi / 4, 0, T_MAX / 2, 0])
    assert scales == ([1.6] * 5, [1.6] * 5, None, None)


def test_a_model_of_two_times_with_fresh_noise_is_told_that_it_leads_to_0():
    network = Recorder()
    drawn(few_step_draw(network, FreshNoise(tells_end=True), (T_MAX, 1.1), PATH, None))
    assert [(t, end) for t, _, end in network.calls] == [(pytest.approx(T_MAX), 0), (1.1, 0)]


@pytest.mark.parametrize(
    ("steps", "point", "message"),
    [
        (FreshNoise(), SweepPoint(3), "3 steps need 2 intermediate_times"),
        (FreshNoise(), SweepPoint(2, t_mid=1.5705), "later times must be below it"),
        (SegmentJumps(Segments(3)), SweepPoint(2), r"set num_steps to \[3\]"),
        (SegmentJumps(Segments(3)), SweepPoint(3, t_mid=0.8), "sampled at their edges"),
        (EqualJumps(), SweepPoint(2, t_mid=0.8), "sweep only num_steps"),
    ],
)
def test_points_that_a_model_cannot_be_sampled_at_are_refused(steps, point, message):
    with pytest.raises(ValueError, match=message):
        steps.times(point.num_steps, point.t_mid, (1.2,), PATH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": ()}, "at least 1"),
        ({"num_steps": (2, 2)}, "num_steps of a sweep must be finite numbers that differ"),
        ({"num_steps": (0, 1)}, "at least 1"),
        ({"t_mid": (0.8, math.nan)}, "t_mid of a sweep must be finite"),
        ({"t_mid": (0.8, 0.80000001)}, "t_mid of a sweep must be finite numbers that differ"),
        ({"t_mid": (1.6,)}, "the angle in"),
        ({"t_mid": (0.8,), "num_steps": (1,)}, "of two or more steps"),
        ({"guidance": (math.inf,)}, "guidance of a sweep must be finite"),
        ({"ema": (1, 1)}, "ema of a sweep must be finite numbers that differ"),
    ],
)
def test_impossible_sweeps_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerSweep(**options)


@pytest.mark.parametrize("averages", [["0.05"], ["0.05", "0.05"]])
def test_averages_that_are_not_there_or_have_one_name_are_refused(averages):
    with pytest.raises(ValueError, match="ema of a sweep counts the run's averages from 0"):
        SamplerSweep(ema=(0, 1)).points(averages)
