# SPDX-License-Identifier: Apache-2.0
"""Decay factors: the paper's numbers, and the profiles they add up to."""

import itertools
import math

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
        beta = power_function_decay(7, 7 * (step - 1), gamma)
        share = weight * (1 - beta)
        total, mean = total + share, mean + share * step / steps
        square += share * (step / steps) ** 2
        weight *= beta
    assert total == pytest.approx(1.0)
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-3)


@pytest.mark.parametrize("images_in_step", [1, 7, 48, 2048, 4095])
def test_batches_of_one_size_decay_by_the_step_to_the_bit(images_in_step):
    """n / (step n) and 1 / step are one number, rounded once: runs of 0.3.0 go on as they were."""
    gamma = gamma_from_sigma_rel(0.05)
    for step in [*range(1, 3000), *range(3000, 10**6, 997)]:
        beta = power_function_decay(images_in_step, (step - 1) * images_in_step, gamma)
        assert beta == (1.0 - 1.0 / step) ** (gamma + 1.0)


def test_the_profile_counts_images_whatever_the_batches():
    """From a to b images of t it integrates to (b^(gamma+1) - a^(gamma+1)) / t^(gamma+1).

    So one step of 60 images forgets as much as its 60 images one by one.
    """
    batches, gamma = [7, 7, 60, 1, 33, 5], 6.94
    edges = [sum(batches[:k]) for k in range(len(batches) + 1)]
    shares: list[float] = []
    for images, seen in zip(batches, edges, strict=False):
        beta = power_function_decay(images, seen, gamma)
        shares = [*(beta * share for share in shares), 1 - beta]
    power = [(edge / edges[-1]) ** (gamma + 1) for edge in edges]
    assert shares == pytest.approx([b - a for a, b in itertools.pairwise(power)], rel=1e-12)
    one_by_one = math.prod(power_function_decay(1, seen, gamma) for seen in range(14, 74))
    assert power_function_decay(60, 14, gamma) == pytest.approx(one_by_one, rel=1e-12)


def test_half_life_halves():
    """After half_life images in steps of 100, half is left; at the start, nothing."""
    assert half_life_decay(100, 500, 10**9) ** 5 == pytest.approx(0.5)
    assert half_life_decay(100, 500, 0) == pytest.approx(0.0)
    assert half_life_decay(100, 10**9, 2000) == pytest.approx(0.5)  # ramp-up: 5 % of 2000
    assert half_life_decay(100, 500, 0, ramp_up=None) ** 5 == pytest.approx(0.5)


def test_impossible_averages_are_refused():
    with pytest.raises(ValueError, match="half-life must be a positive number"):
        half_life_decay(100, 0.0, 0)
    for images in ((0, 5), (3, -1)):
        with pytest.raises(ValueError, match="counts at least 1 image in a step, and 0 before it"):
            power_function_decay(*images, 7.0)
    with pytest.raises(ValueError, match="sigma_rel must be in"):
        gamma_from_sigma_rel(0.3)
