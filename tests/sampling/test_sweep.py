# SPDX-License-Identifier: Apache-2.0
"""A sweep's rows and what they stand for: names, times, scales, the options that repeat them."""

import math

import pytest
import torch
from gaussian import PATH, ExactStudent

from scm_lightning.core import Segments, sample_generators
from scm_lightning.sampling import (
    ConsistencySteps,
    MeanFlowSteps,
    SamplerSweep,
    SegmentSteps,
    SweepPoint,
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


def drawn(sampler):
    generators = sample_generators(range(5), seed=2)
    noise = PATH.sigma_data * torch.randn(5, 3, dtype=torch.float64)
    return sampler.draw(noise, None, generators)


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
    network = Recorder()
    sampler = ConsistencySteps(PATH, (1.2,)).sampler_at(network, point)
    drawn(sampler)
    assert [t for t, _, _ in network.calls] == pytest.approx(times, rel=1e-12)
    assert sampler.nfe == point.num_steps


def test_a_point_s_guidance_wins_over_the_run_s():
    network = Recorder()
    steps = ConsistencySteps(PATH, (1.2,), guidance=1.1)
    for point in (SweepPoint(1), SweepPoint(1, guidance=1.8)):
        drawn(steps.sampler_at(network, point))
    assert [scales for _, scales, _ in network.calls] == [[1.1] * 5, [1.8] * 5]


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_options_of_a_point_make_it_a_sampler_of_the_run(num_steps):
    """The same samples from the same noise, up to the six digits of a time."""
    point = SweepPoint(num_steps, t_mid=None if num_steps == 1 else 0.65)
    student, options = ExactStudent(), ConsistencySteps(PATH, (1.2,)).options_at(point)
    own = ConsistencySteps(PATH, **options).samplers(student)
    assert len(own) == num_steps
    torch.manual_seed(0)
    expected = drawn(ConsistencySteps(PATH, (1.2,)).sampler_at(student, point))
    torch.manual_seed(0)
    found = drawn(own[f"{num_steps}_step"])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_segments_and_mean_flow_are_sampled_at_their_own_times():
    """Edges of the segments; equal parts of t_max."""
    network = Recorder()
    drawn(SegmentSteps(PATH, Segments(2), 1.3).sampler_at(network, SweepPoint(2, guidance=1.6)))
    drawn(MeanFlowSteps(PATH, (1,)).sampler_at(network, SweepPoint(2)))
    starts, scales, ends = zip(*network.calls, strict=True)
    assert starts == pytest.approx([T_MAX, math.pi / 4, T_MAX, T_MAX / 2])
    assert ends == pytest.approx([math.pi / 4, 0, T_MAX / 2, 0])
    assert scales == ([1.6] * 5, [1.6] * 5, None, None)


@pytest.mark.parametrize(
    ("steps", "point", "message"),
    [
        (ConsistencySteps(PATH, (1.2,)), SweepPoint(3), "3 steps need 2 intermediate_times"),
        (ConsistencySteps(PATH, ()), SweepPoint(2, t_mid=1.5705), "times must descend"),
        (SegmentSteps(PATH, Segments(3)), SweepPoint(2), r"set num_steps to \[3\]"),
        (SegmentSteps(PATH, Segments(3)), SweepPoint(3, t_mid=0.8), "sampled at their edges"),
        (MeanFlowSteps(PATH, (1,)), SweepPoint(2, t_mid=0.8), "sweep num_steps and ema alone"),
        (MeanFlowSteps(PATH, (1,)), SweepPoint(2, guidance=1.5), "without guidance"),
    ],
)
def test_points_that_a_model_cannot_be_sampled_at_are_refused(steps, point, message):
    with pytest.raises(ValueError, match=message):
        steps.sampler_at(Recorder(), point)


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
