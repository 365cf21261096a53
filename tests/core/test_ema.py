# SPDX-License-Identifier: Apache-2.0
"""Decay factors: the paper's numbers, and the profiles they add up to."""

import pytest

from scm_lightning.core import gamma_from_sigma_rel, half_life_decay, power_function_decay


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"),
    [(0.05, 16.97), (0.10, 6.94), (0.075, 10.29), (0.06, 13.63), (0.04, 21.98), (0.015, 63.7)],
)
def test_exponents_of_the_profiles_used_by_the_paper(sigma_rel, gamma):
    """EDM2's table of profiles, to its last digit."""
    digits = len(str(gamma).partition(".")[2])
    assert round(gamma_from_sigma_rel(sigma_rel), digits) == gamma


def test_power_function_profile_has_the_width_asked_for():
    """Weights of 20,000 steps: their standard deviation is sigma_rel of the run."""
    steps, sigma_rel = 20_000, 0.1
    gamma = gamma_from_sigma_rel(sigma_rel)
    weight, total, mean, square = 1.0, 0.0, 0.0, 0.0
    for step in range(steps, 0, -1):  # weight of a step: what it adds, times all later decays
        beta = power_function_decay(step, gamma)
        share = weight * (1 - beta)
        total, mean = total + share, mean + share * step / steps
        square += share * (step / steps) ** 2
        weight *= beta
    assert total == pytest.approx(1.0)
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-3)


def test_half_life_halves():
    """After half_life images in steps of 100, half is left; at the start, nothing."""
    assert half_life_decay(100, 500, 10**9) ** 5 == pytest.approx(0.5)
    assert half_life_decay(100, 500, 0) == pytest.approx(0.0)
    assert half_life_decay(100, 10**9, 2000) == pytest.approx(0.5)  # ramp-up: 5 % of 2000
    assert half_life_decay(100, 500, 0, ramp_up=None) ** 5 == pytest.approx(0.5)


def test_impossible_averages_are_refused():
    with pytest.raises(ValueError, match="half-life must be a positive number"):
        half_life_decay(100, 0.0, 0)
    with pytest.raises(ValueError, match="count from 1, got 0"):
        power_function_decay(0, 7.0)
    with pytest.raises(ValueError, match="sigma_rel must be in"):
        gamma_from_sigma_rel(0.3)
