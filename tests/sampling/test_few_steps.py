# SPDX-License-Identifier: Apache-2.0
"""Sampling with the exact consistency function: distribution, fresh noise, seeds, cost."""

import math

import pytest
import torch
from gaussian import DATA_STD, PATH, ExactStudent, std

from scm_lightning.core import Bound, sample_generators
from scm_lightning.sampling import sample_consistency, sample_flow_map, sample_ode

T_MAX = PATH.t_max()


@pytest.mark.parametrize(
    "times", [(T_MAX,), (T_MAX, 1.1), (T_MAX, 1.3, 0.9, 0.4), (math.pi / 2, 1.3), (1.57080, 1.3)]
)
def test_samples_have_the_data_s_distribution(times):
    """One, two and four steps: standard deviation s, up to the start at t_max instead of pi/2.

    Of 200,006 numbers it has a standard error of 0.16 %, which each step's noise brings anew.
    """
    generator = torch.Generator().manual_seed(0)
    noise = PATH.sigma_data * torch.randn(100_003, 2, generator=generator, dtype=torch.float64)
    x0 = sample_consistency(ExactStudent(), noise, times, path=PATH, generator=generator)
    assert float(x0.std()) == pytest.approx(DATA_STD, rel=0.01)
    assert float(x0.mean()) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("start", [T_MAX, math.pi / 2, 1.57080])
def test_one_step_by_hand(randn, start):
    """f(x, t) = s x / std(t); from pi/2 it is s x / sigma_data."""
    noise = randn(5, 3)
    variance = (math.cos(start) * DATA_STD) ** 2 + (math.sin(start) * PATH.sigma_data) ** 2
    x0 = sample_consistency(ExactStudent(), noise, (start,), path=PATH)
    torch.testing.assert_close(x0, DATA_STD / variance**0.5 * noise)


@pytest.mark.parametrize("start", [T_MAX, math.pi / 2, 1.57080])
def test_the_exact_flow_map_by_hand(randn, start):
    """x(t) = x(t') std(t) / std(t') at every time on the way; F is what jumps there."""

    def F(u, t, t_end):
        ratio = std(t_end) / std(t)
        return (((t - t_end).cos() - ratio) / (t - t_end).sin())[:, None] * u

    noise, told = randn(5, 3), []
    times = (start, 1.2, 0.4, 0.0)
    on_step = lambda *step: told.append(step)  # noqa: E731
    x0 = sample_flow_map(F, noise, times, step=PATH.jump, path=PATH, on_step=on_step)
    assert torch.equal(x0, told[-1][1])
    for (time, state), expected in zip(told, times[1:], strict=True):
        assert time == expected
        first, last = std(torch.tensor([start, time], dtype=torch.float64))
        torch.testing.assert_close(state, last / first * noise)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_networks_see_a_positive_noise_level_at_pi_half(randn, dtype):
    """Float32 rounds pi/2 up, and there tan, the sigma of a converted teacher, is negative."""
    seen = []

    def F(u, t, t_end=None):
        seen.append(t)
        return u

    for start in (math.pi / 2, 1.57080, math.pi / 2 + 1e-5):
        noise = randn(5, 3).to(dtype)
        sample_consistency(F, noise, (start, 1.3), path=PATH)
        sample_flow_map(F, noise, (start, 0.0), step=PATH.jump, path=PATH)
        sample_ode(F, noise, (start, 1.3, 0.0), path=PATH)
    assert all(t.dtype == dtype for t in seen)
    assert all(bool((PATH.sigma_from_t(t.double()) > 0).all()) for t in seen)
    assert max(float(t.max()) for t in seen) > 1.57


def test_a_second_step_mixes_in_fresh_noise_of_its_generator(randn):
    """x2 = f(cos s x1 + sin s sigma_data n, s), with n from the generator handed in."""
    noise, s, student = randn(5, 3), 1.1, ExactStudent()
    first = sample_consistency(student, noise, (T_MAX,), path=PATH)
    drawn = [
        torch.randn(3, generator=g, dtype=torch.float64) for g in sample_generators(range(5), 1)
    ]
    x_s = math.cos(s) * first + math.sin(s) * PATH.sigma_data * torch.stack(drawn)
    t = torch.full((5,), s).double()
    expected = PATH.consistency(student(x_s / PATH.sigma_data, t), x_s, t)
    found = sample_consistency(
        student, noise, (T_MAX, s), path=PATH, generator=sample_generators(range(5), 1)
    )
    torch.testing.assert_close(found, expected)


def test_labels_and_guidance_reach_the_network(randn):
    def network(u, t, labels, guidance):
        return u * (labels * guidance)[:, None]

    labels, guidance = torch.arange(5), torch.full((5,), 0.5).double()
    noise = randn(5, 3)
    found = sample_consistency(Bound(network, labels, guidance), noise, (1.0,), path=PATH)
    torch.testing.assert_close(
        found, (math.cos(1.0) - math.sin(1.0) * 0.5 * labels.double())[:, None] * noise
    )


@pytest.mark.parametrize(
    "times", [(), (2.0,), (1.6,), (1.57081,), (1.1, 1.1), (0.5, 1.1), (0.0,), (-0.1,)]
)
def test_bad_times_are_refused(randn, times):
    with pytest.raises(ValueError, match="sampling times must"):
        sample_consistency(ExactStudent(), randn(5, 3), times, path=PATH)


def test_times_may_be_a_tensor_and_do_not_end_with_0(randn):
    noise, times = randn(5, 3), torch.tensor([1.5, 1.1], dtype=torch.float64)
    samples = [
        sample_consistency(
            ExactStudent(), noise, given, path=PATH, generator=sample_generators(range(5), 1)
        )
        for given in (times, times.tolist())
    ]
    torch.testing.assert_close(*samples, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"last time must be above 0, .*; leave out the 0"):
        sample_consistency(ExactStudent(), noise, (1.5, 1.1, 0.0), path=PATH)
