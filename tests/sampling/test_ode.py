# SPDX-License-Identifier: Apache-2.0
"""Solvers on the Gaussian ODE, whose solution is known: exactness, order, end points."""

import itertools
import math

import pytest
import torch
from gaussian import DATA_STD, PATH, ExactTeacher, std

from scm_lightning.core import TrigFlow
from scm_lightning.sampling import sample_ode, time_grid

SOLVERS = [("ddim", 1), ("heun", 2), ("dpm-2s", 2), ("dpm++", 2)]


def error(solver, times, x):
    """Largest relative error of a solution at the last of the times."""
    found = sample_ode(ExactTeacher(), x, times, path=PATH, solver=solver)
    first, last = std(torch.tensor([times[0], times[-1]], dtype=torch.float64))
    return float((found / (last / first * x) - 1).abs().max())


def equal_steps(num, start=1.4, end=0.2):
    return torch.linspace(start, end, num + 1, dtype=torch.float64).tolist()


def edm_steps(num):
    """EDM's grid until its smallest noise level: the last step, to 0, does not become smaller."""
    return time_grid(num + 1, PATH)[:-1]


@pytest.mark.parametrize(("solver", "order"), SOLVERS)
@pytest.mark.parametrize("steps", [equal_steps, edm_steps])
def test_order_of_convergence(steps, solver, order):
    """Halving the step divides the error by 2^order."""
    ones = torch.ones(5, 3).double()
    errors = [error(solver, steps(num), ones) for num in (160, 320, 640)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("solver", "order"), SOLVERS)
@pytest.mark.parametrize("start", [math.pi / 2, 1.57080])
def test_the_order_holds_from_pi_half(start, solver, order):
    """The first step is a DDIM step, where others have no limit; up to a logarithm, from the next.

    Measured at 0.1: orders of 0.99, 1.93, 1.98 and 2.05. At 0.2 the last has an error of 0.
    """
    ones = torch.ones(5, 3).double()
    errors = [error(solver, equal_steps(num, start, 0.1), ones) for num in (160, 320, 640)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", ["heun", "dpm-2s", "dpm++"])
@pytest.mark.parametrize("start", [PATH.t_max(), math.pi / 2])
def test_the_whole_way_to_the_data(solver, start, randn):
    """On EDM's grid to 0, the noise becomes data: x(0) = s x / std(start)."""
    times, x = [start, *time_grid(160, PATH)[1:]], PATH.sigma_data * randn(5, 3)
    found = sample_ode(ExactTeacher(), x, times, path=PATH, solver=solver)
    exact = DATA_STD / std(torch.tensor(times[0]).double()) * x
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm-2s", "dpm++"])
def test_float32_suffices_from_pi_half(solver, randn):
    """1 / cos(s) is 1e7 there: a second-order term of the first step would be rounding alone."""
    times, x = [math.pi / 2, *time_grid(18, PATH)[1:]], PATH.sigma_data * randn(5, 3)
    found = sample_ode(ExactTeacher(), x.float(), times, path=PATH, solver=solver)
    exact = sample_ode(ExactTeacher(), x, times, path=PATH, solver=solver)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)


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


@pytest.mark.parametrize("start", [PATH.t_max(), math.pi / 2])
def test_cost_is_counted_as_it_is_spent(randn, start):
    """18 Heun steps are 35 network calls; from pi/2 on 34, since the first is a DDIM step."""
    times = [start, *time_grid(18, PATH)[1:]]
    twice = 35 if start < 1.57 else 34
    for solver, expected in (("ddim", 18), ("heun", twice), ("dpm-2s", twice), ("dpm++", 18)):
        calls = []

        def F(u, t, calls=calls):
            calls.append(t)
            return ExactTeacher()(u, t)

        sample_ode(F, randn(5, 3), times, path=PATH, solver=solver)
        assert len(calls) == expected


def test_dpm_2s_looks_ahead_to_the_middle_in_log_snr(randn):
    """Its second call of a step is at tan m = sqrt(tan s tan t)."""
    called = []

    def F(u, t):
        called.append(t.tan())
        return ExactTeacher()(u, t)

    sample_ode(F, randn(5, 3), [1.4, 0.9, 0.2], path=PATH, solver="dpm-2s")
    s, m, t, n = (each[0] for each in called)
    torch.testing.assert_close(m**2, s * t)
    torch.testing.assert_close(n**2, t * math.tan(0.2))


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm-2s", "dpm++"])
def test_every_state_is_told(randn, solver):
    """The state told at a time is the result of a run that ends there."""
    x, times, told = PATH.sigma_data * randn(5, 3), [math.pi / 2, 1.3, 0.8, 0.2], []
    on_step = lambda *step: told.append(step)  # noqa: E731
    found = sample_ode(ExactTeacher(), x, times, path=PATH, solver=solver, on_step=on_step)
    assert [time for time, _ in told] == times[1:]
    assert torch.equal(told[-1][1], found)
    for num, (_, state) in enumerate(told, start=2):
        until = sample_ode(ExactTeacher(), x, times[:num], path=PATH, solver=solver)
        assert torch.equal(state, until)


def test_bad_grids_are_refused(randn):
    x = randn(5, 3)
    with pytest.raises(ValueError, match=r"angles in \[0, pi/2\], got \[2.0, 0.0\]"):
        sample_ode(ExactTeacher(), x, [2.0, 0.0], path=PATH)
    with pytest.raises(ValueError, match=r"angles in \[0, pi/2\], got \[1.6, 0.0\]"):
        sample_ode(ExactTeacher(), x, [1.6, 0.0], path=PATH)
    with pytest.raises(ValueError, match="must descend"):
        sample_ode(ExactTeacher(), x, [1.57080, math.pi / 2], path=PATH)
    with pytest.raises(ValueError, match="must descend"):
        sample_ode(ExactTeacher(), x, [0.5, 0.7, 0.0], path=PATH)
    with pytest.raises(ValueError, match=r"or dpm\+\+, got 'dpmpp_2m'; dpmpp_2m is dpm\+\+"):
        sample_ode(ExactTeacher(), x, [0.5, 0.0], path=PATH, solver="dpmpp_2m")
    with pytest.raises(ValueError, match="at least 2 solver steps"):
        time_grid(1, PATH)
