# SPDX-License-Identifier: Apache-2.0
"""The discrete tangent, the discrete grid, and segments of the path."""

import math

import pytest
import torch
from gaussian import PATH, ExactStudent, velocity

from scm_lightning.core import Segments, TimeGrid, discrete_tangent, expand_time, tangent
from scm_lightning.sampling import time_grid

T = torch.tensor([0.1, 0.4, 0.9, 1.3, 1.55], dtype=torch.float64)


def F(u, t):
    """A network that is no consistency function."""
    return expand_time((2 * t).sin() + 0.3, u) * u.tanh() + expand_time(t.square(), u)


def tangents(x_t, step):
    """Discrete tangent over `step`, and the continuous one, with r = 0.6."""
    dx_dt = velocity(x_t, T)
    before = T - step
    x_before = PATH.jump(dx_dt / PATH.sigma_data, x_t, T, before)
    points = F(x_t / PATH.sigma_data, T), F(x_before / PATH.sigma_data, before)
    options = {"sigma_data": PATH.sigma_data, "r": 0.6}
    discrete = discrete_tangent(*points, x_t, dx_dt, T, before, **options)
    cos_sin = T.cos() * T.sin()
    direction = (expand_time(cos_sin, x_t) * dx_dt / PATH.sigma_data, cos_sin)
    _, J = torch.func.jvp(F, (x_t / PATH.sigma_data, T), direction)
    return discrete, tangent(points[0], J, x_t, dx_dt, T, **options)


def test_the_discrete_tangent_tends_to_the_continuous_one(randn):
    """At first order: a tenth of the step, a tenth of the difference."""
    x_t, errors = PATH.sigma_data * randn(5, 2, 3), []
    for step in (1e-3, 1e-4, 1e-5):
        discrete, continuous = tangents(x_t, step)
        errors.append(float((discrete - continuous).norm() / continuous.norm()))
    assert errors[0] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)


def test_the_discrete_tangent_compares_two_consistency_functions(randn):
    """With r = 1 it is cos t (f(x_t, t) - f(x_t', t')) / sin(t - t'), rotated terms included."""
    x_t = PATH.sigma_data * randn(5, 2, 3)
    dx_dt, before = velocity(x_t, T), T - 0.05
    x_before = PATH.jump(dx_dt / PATH.sigma_data, x_t, T, before)
    F_t, F_before = F(x_t / PATH.sigma_data, T), F(x_before / PATH.sigma_data, before)
    found = discrete_tangent(
        F_t, F_before, x_t, dx_dt, T, before, sigma_data=PATH.sigma_data, r=1.0
    )
    f_t = PATH.consistency(F_t, x_t, T)
    f_before = PATH.consistency(F_before, x_before, before)
    scale = expand_time(T.cos() / (T - before).sin(), x_t)
    torch.testing.assert_close(found, scale * (f_t - f_before))


def test_grid_is_the_samplers_with_zero_for_its_smallest_level():
    """EDM's grid of N + 1 levels, upside down."""
    times = TimeGrid(6).times(PATH).tolist()
    assert times[0] == 0.0
    assert times[1:] == pytest.approx(time_grid(7, PATH)[:-2][::-1])


def test_times_move_to_the_interval_they_lie_in():
    grid = TimeGrid(6)
    times = grid.times(PATH)
    low, high = grid.interval(T, PATH)
    for t, one, other in zip(T.tolist(), low.tolist(), high.tolist(), strict=True):
        index = times.tolist().index(one)
        assert times[index + 1] == other
        assert one < t <= other or t > times[-1] == other
    inside = grid.interval(times[3:4], PATH)
    assert (inside[0], inside[1]) == (times[2], times[3])
    ends = grid.interval(torch.tensor([0.0, math.pi / 2]).double(), PATH)  # outside, or its edge
    assert torch.equal(ends[0], times[[0, -2]])
    assert torch.equal(ends[1], times[[1, -1]])
    with pytest.raises(ValueError, match="at least 1 interval, got 0"):
        TimeGrid(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_time_of_the_grid_is_the_upper_end_of_its_interval(dtype):
    """In any precision: otherwise the step would be zero and the difference over it infinite."""
    grid = TimeGrid(1024)
    times = grid.times(PATH).to(dtype)
    before, after = grid.interval(times[1:], PATH)
    assert torch.equal(after, times[1:])
    assert torch.equal(before, times[:-1])


def test_segments_by_hand():
    """Four parts of pi/8 each; one part reaches down to 0."""
    edges = Segments(4).lower_edge(T) / (math.pi / 8)
    assert edges.tolist() == pytest.approx([0, 1, 2, 3, 3])
    assert Segments(1).lower_edge(T).tolist() == [0.0] * 5
    quarters = [math.pi / 8 * k for k in (3, 2, 1, 0)]
    assert Segments(4).edges(1.56) == pytest.approx((1.56, *quarters))
    assert float(Segments(4).lower_edge(torch.tensor([math.pi / 2]))) == pytest.approx(quarters[0])
    with pytest.raises(ValueError, match="at least 1 segment, got 0"):
        Segments(0)


def test_the_exact_student_has_no_discrete_tangent(randn):
    """Along the exact ODE to second order: the student of Gaussian data, small steps.

    What is left is of the order of the step. Measured: four of them.
    """
    step = 1e-5
    student, x_t, before = ExactStudent(), PATH.sigma_data * randn(5, 3), T - step
    dx_dt = velocity(x_t, T)
    x_before = PATH.jump(dx_dt / PATH.sigma_data, x_t, T, before)
    with torch.no_grad():
        F_t = student(x_t / PATH.sigma_data, T)
        F_before = student(x_before / PATH.sigma_data, before)
    g = discrete_tangent(F_t, F_before, x_t, dx_dt, T, before, sigma_data=PATH.sigma_data, r=1.0)
    assert float(g.abs().max()) < 20 * step
