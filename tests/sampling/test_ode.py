# SPDX-License-Identifier: Apache-2.0
"""Solvers on the Gaussian ODE, whose solution is known: exactness, order, end points."""

import itertools
import math

import pytest
import torch
from gaussian import DATA_STD, PATH, ExactTeacher, std

from scm_lightning.core import TrigFlow
from scm_lightning.sampling import num_evaluations, sample_ode, time_grid


def error(solver, num_steps, x):
    """Error at 0.2 of a solution that starts at 1.4, on equal steps."""
    start = 1.4
    times = torch.linspace(start, 0.2, num_steps + 1, dtype=torch.float64).tolist()
    found = sample_ode(ExactTeacher(), x, times, path=PATH, solver=solver)
    ratio = std(torch.tensor(0.2).double()) / std(torch.tensor(start).double())
    return float((found - ratio * x).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2), ("dpm++", 2)])
def test_order_of_convergence(solver, order):
    """Halving the step divides the error by 2^order."""
    ones = torch.ones(5, 3).double()
    errors = [error(solver, num_steps, ones) for num_steps in (160, 320, 640)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", ["heun", "dpm++"])
def test_the_whole_way_to_the_data(solver, randn):
    """On EDM's grid from t_max to 0, the noise becomes data: x(0) = s x / std(t_max)."""
    times, x = time_grid(160, PATH), PATH.sigma_data * randn(5, 3)
    found = sample_ode(ExactTeacher(), x, times, path=PATH, solver=solver)
    exact = DATA_STD / std(torch.tensor(times[0]).double()) * x
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=0)


def test_heun_is_edms_sampler(randn):
    """EDM's Algorithm 1 without churn, in noise levels: the same samples to rounding."""
    times = time_grid(18, PATH)
    start = PATH.sigma_data * randn(5, 3)
    sigma = PATH.sigma_from_t(torch.tensor(times, dtype=torch.float64))
    x = start / math.cos(times[0])

    def slope(x, sigma):
        denoised = DATA_STD**2 / (DATA_STD**2 + sigma**2) * x
        return (x - denoised) / sigma

    for now, then in itertools.pairwise(sigma):
        d = slope(x, now)
        euler = x + (then - now) * d
        x = euler if then == 0 else x + (then - now) * (d + slope(euler, then)) / 2
    torch.testing.assert_close(
        sample_ode(ExactTeacher(), start, times, path=PATH, solver="heun"), x
    )


def test_a_step_to_zero_is_the_denoiser(randn):
    """One DDIM step from s to 0 is f(x, s)."""
    x, s = randn(5, 3), 1.1
    t = torch.full((5,), s).double()
    found = sample_ode(ExactTeacher(), x, [s, 0.0], path=PATH, solver="ddim")
    F = ExactTeacher()(x / PATH.sigma_data, t)
    torch.testing.assert_close(found, PATH.consistency(F, x, t))


def test_grid_is_edms():
    """sigma from 80 to 0.002 with rho = 7, then 0."""
    times = time_grid(18, TrigFlow(0.5))
    sigma = [0.5 * math.tan(t) for t in times]
    assert sigma[0] == pytest.approx(80.0)
    assert sigma[17] == pytest.approx(0.002)
    assert times[18] == 0.0
    between = (80 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigma[5] == pytest.approx(between)


def test_cost_is_counted_as_it_is_spent(randn):
    """18 Heun steps are 35 network calls."""

    class Counting(ExactTeacher):
        calls = 0

        def forward(self, u, t, labels=None, guidance=None):
            Counting.calls += 1
            return super().forward(u, t)

    times = time_grid(18, PATH)
    for solver, calls in (("ddim", 18), ("heun", 35), ("dpm++", 18)):
        Counting.calls = 0
        sample_ode(Counting(), randn(5, 3), times, path=PATH, solver=solver)
        assert Counting.calls == calls == num_evaluations(times, solver)


def test_bad_grids_are_refused(randn):
    x = randn(5, 3)
    with pytest.raises(ValueError, match=r"angles in \[0, pi/2\], got \[2.0, 0.0\]"):
        sample_ode(ExactTeacher(), x, [2.0, 0.0], path=PATH)
    with pytest.raises(ValueError, match="must descend"):
        sample_ode(ExactTeacher(), x, [0.5, 0.7, 0.0], path=PATH)
    with pytest.raises(ValueError, match="solver must be ddim, heun, dpm-2s or dpm"):
        sample_ode(ExactTeacher(), x, [0.5, 0.0], path=PATH, solver="euler")
    with pytest.raises(ValueError, match="at least 2 solver steps"):
        time_grid(1, PATH)
