# SPDX-License-Identifier: Apache-2.0
"""EDM's churn: its Algorithm 2 in noise levels, the distribution that it keeps, seeds, refusals."""

import itertools
import math

import pytest
import torch
from gaussian import DATA_STD, PATH, ExactTeacher

from scm_lightning.core import sample_generators
from scm_lightning.sampling import Churn, sample_ode, time_grid

TIMES = time_grid(18, PATH)
CHURN = Churn(6.0, S_tmin=0.05, S_tmax=50.0, S_noise=1.1)


def churned(noise, churn, solver="heun", times=TIMES, generator=None):
    return sample_ode(
        ExactTeacher(), noise, times, path=PATH, solver=solver, churn=churn, generator=generator
    )


def edm_algorithm_2(x, sigmas, churn, generator):
    """In EDM's own variables, as printed, for Gaussian data.

    Returns:
        The samples, and at how many steps noise was added.
    """

    def slope(x, sigma):
        return sigma / (DATA_STD**2 + sigma**2) * x

    num_stirred = 0
    for sigma, then in itertools.pairwise(sigmas):
        gamma = 0.0
        if churn.S_tmin <= sigma <= churn.S_tmax:
            gamma = min(churn.S_churn / (len(sigmas) - 1), math.sqrt(2) - 1)
            n = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            num_stirred += 1
        sigma_hat = sigma + gamma * sigma
        if gamma:
            x = x + math.sqrt(sigma_hat**2 - sigma**2) * churn.S_noise * n
        d = slope(x, sigma_hat)
        euler = x + (then - sigma_hat) * d
        x = euler
        if then:
            x = x + (then - sigma_hat) * (slope(euler, then) - d) / 2
    return x, num_stirred


@pytest.mark.parametrize("S_churn", [6.0, 40.0])
def test_churned_heun_is_edms_algorithm_2(randn, S_churn):
    """Below the bound of sqrt(2) - 1 on gamma and above it; at some steps and not at others."""
    noise, churn = PATH.sigma_data * randn(5, 3), Churn(S_churn, 0.05, 50.0, 1.1)
    sigmas = PATH.sigma_from_t(torch.tensor(TIMES, dtype=torch.float64)).tolist()
    expected, num_stirred = edm_algorithm_2(
        noise / math.cos(TIMES[0]), sigmas, churn, torch.Generator().manual_seed(4)
    )
    found = churned(noise, churn, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(found, expected)
    assert 3 < num_stirred < 15


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm-2s"])
def test_without_churn_the_solver_is_itself_to_the_bit(randn, solver):
    """Of amount 0, or between noise levels that are not there; and no number is drawn."""
    noise, generator = PATH.sigma_data * randn(5, 3), torch.Generator().manual_seed(0)
    state = generator.get_state()
    plain = churned(noise, None, solver)
    for nothing in (Churn(0.0), Churn(40.0, S_tmin=81.0), Churn(40.0, S_tmax=0.001)):
        assert torch.equal(churned(noise, nothing, solver, generator=generator), plain)
    assert torch.equal(generator.get_state(), state)
    assert not torch.equal(churned(noise, Churn(1.0), solver, generator=generator), plain)


@pytest.mark.parametrize(("solver", "start"), [("heun", TIMES[0]), ("dpm-2s", math.pi / 2)])
def test_churn_keeps_the_data_s_distribution(solver, start):
    """All noise is renewed, and the variance is that of the data, in 50,006 numbers.

    Its standard error is sqrt(2 / n), of which four, and 0.5 % for the length of the steps: 0.4 %
    was measured on four times as many. Noise that is 5 % too strong is seen.
    """
    times = [start, *time_grid(160, PATH)[1:]]
    generator = torch.Generator().manual_seed(0)
    noise = PATH.sigma_data * torch.randn(25_003, 2, generator=generator, dtype=torch.float64)
    x0 = churned(noise, Churn(20.0), solver, times, generator)
    bound = 4 * (2 / x0.numel()) ** 0.5 + 0.005
    assert float(x0.var()) == pytest.approx(DATA_STD**2, rel=bound)
    correlation = float((x0 * noise).mean()) / (DATA_STD * PATH.sigma_data)
    assert abs(correlation) < 4 * x0.numel() ** -0.5
    noisier = churned(noise, Churn(20.0, S_noise=1.05), solver, times, generator)
    assert float(noisier.var()) > DATA_STD**2 * (1 + 2 * bound)


def test_a_sample_has_its_own_noise_whatever_the_batch(randn):
    noise = PATH.sigma_data * randn(5, 3)
    whole = churned(noise, CHURN, generator=sample_generators(range(5), 3))
    for part in (slice(0, 2), slice(2, 5)):
        generators = sample_generators(range(5)[part], 3)
        assert torch.equal(churned(noise[part], CHURN, generator=generators), whole[part])
    assert not torch.equal(churned(noise, CHURN, generator=sample_generators(range(5), 4)), whole)


@pytest.mark.parametrize(
    "numbers",
    [(-1.0,), (math.inf,), (math.nan,), (1.0, -0.1), (1.0, 2.0, 1.0), (1.0, 0.0, 1.0, math.nan)],
)
def test_impossible_churn_is_refused(numbers):
    with pytest.raises(ValueError, match="churn needs finite S_churn and S_noise of at least 0"):
        Churn(*numbers)


def test_a_solver_that_looks_back_is_not_churned(randn):
    with pytest.raises(ValueError, match=r"single steps, got dpm\+\+, .* take heun"):
        churned(randn(5, 3), CHURN, "dpm++")
