# SPDX-License-Identifier: Apache-2.0
"""The path: variance, boundary, inverses, and the shape gate."""

import math

import pytest
import torch

from scm_lightning.core import (
    TimeProposal,
    TrigFlow,
    expand_time,
    sample_generators,
    standard_normal,
)

PATH = TrigFlow(sigma_data=0.7)
TIMES = torch.linspace(0.0, math.pi / 2, 5, dtype=torch.float64)


def test_variance_is_sigma_data_squared_at_every_time():
    """Data of standard deviation sigma_data stay at it on the whole path.

    Within five standard errors, of 0.16 % each.
    """
    x0 = PATH.sigma_data * torch.randn(5, 200_000, generator=torch.Generator().manual_seed(1))
    x_t, _ = PATH.add_noise(x0, TIMES.float(), torch.Generator().manual_seed(2))
    torch.testing.assert_close(x_t.std(1), torch.full((5,), 0.7), rtol=8e-3, atol=0)


def test_ends_of_the_path(randn):
    """x_t is the data at 0 and the noise at pi/2."""
    x0 = randn(5, 3, 2)
    x_t, z = PATH.add_noise(x0, TIMES)
    torch.testing.assert_close(x_t[0], x0[0])
    torch.testing.assert_close(x_t[-1], z[-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_is_mixed_in_at_float32_or_wider(dtype):
    """Data of half precision: x_t and z are those of the same numbers in float32."""
    x0, t = torch.linspace(-1, 1, 14).reshape(7, 2).to(dtype), torch.linspace(0, 1.5, 7)
    found = PATH.add_noise(x0, t, torch.Generator().manual_seed(0))
    expected = PATH.add_noise(x0.float(), t, torch.Generator().manual_seed(0))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_velocity_is_the_derivative_of_the_path(randn):
    """Central differences of cos(t) x0 + sin(t) z."""
    x0, z, h = randn(5, 3), randn(5, 3), 1e-6
    t = TIMES[:, None]

    def x(t):
        return t.cos() * x0 + t.sin() * z

    torch.testing.assert_close(PATH.velocity(x0, z, TIMES), (x(t + h) - x(t - h)) / (2 * h))


def test_exact_F_returns_data_and_noise(randn):
    """With sigma_data F = dx/dt of the pair, f is x0 and the noise predictor is z."""
    x0 = randn(5, 3)
    x_t, z = PATH.add_noise(x0, TIMES, torch.Generator().manual_seed(3))
    F = PATH.velocity(x0, z, TIMES) / PATH.sigma_data
    torch.testing.assert_close(PATH.consistency(F, x_t, TIMES), x0)
    torch.testing.assert_close(PATH.noise(F, x_t, TIMES), z)


def test_ddim_identity(randn):
    """x_s = cos(s) D + sin(s) z_hat: a DDIM step written both ways. Paper, Section 3.1."""
    x_t, F = randn(5, 3), randn(5, 3)
    s = TIMES * 0.4
    both = expand_time(s.cos(), x_t) * PATH.consistency(F, x_t, TIMES)
    both = both + expand_time(s.sin(), x_t) * PATH.noise(F, x_t, TIMES)
    step = expand_time((TIMES - s).cos(), x_t) * x_t
    step = step - expand_time((TIMES - s).sin(), x_t) * PATH.sigma_data * F
    torch.testing.assert_close(both, step)


def test_boundary_holds_for_any_network(randn):
    """f(x, 0) = x whatever F says."""
    x, t = randn(5, 3), torch.zeros(5, dtype=torch.float64)
    assert torch.equal(PATH.consistency(1e6 * randn(5, 3), x, t), x)


def test_sigma_and_angle_are_inverses():
    """EDM's noise levels, from the smallest to the largest used."""
    sigma = torch.tensor([0.0, 0.002, 0.7, 80.0], dtype=torch.float64)
    t = PATH.t_from_sigma(sigma)
    torch.testing.assert_close(PATH.sigma_from_t(t), sigma)
    torch.testing.assert_close(t[2], torch.tensor(math.pi / 4, dtype=torch.float64))
    assert TrigFlow(0.5).t_max() == pytest.approx(math.atan(80.0 / 0.5))


def test_times_follow_the_log_normal_proposal():
    """log(sigma_data tan t) has the mean and standard deviation asked for, and t stays in range.

    Of 100,000 draws: standard errors 0.0044 and 0.0031.
    """
    t = TimeProposal(P_mean=-1.0, P_std=1.4).sample(100_000, PATH, torch.Generator().manual_seed(0))
    tau = PATH.sigma_from_t(t.double()).log()
    assert float(tau.mean()) == pytest.approx(-1.0, abs=0.02)
    assert float(tau.std()) == pytest.approx(1.4, abs=0.02)
    extreme = TimeProposal(P_mean=60.0, P_std=1.0).sample(7, PATH)
    assert bool((extreme.double() < math.pi / 2).all())


def test_a_time_of_the_wrong_shape_is_refused():
    """With W = B the broadcast would be silent and wrong."""
    x = torch.zeros(4, 3, 4)
    with pytest.raises(ValueError, match=r"must have shape \(4,\), got \(4, 1\)"):
        expand_time(torch.zeros(4, 1), x)
    with pytest.raises(ValueError, match="pass times flat"):
        PATH.velocity(x, x, torch.zeros(3))


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.inf, math.nan])
def test_sigma_data_must_be_positive(sigma_data):
    with pytest.raises(ValueError, match="sigma_data must be a positive number"):
        TrigFlow(sigma_data)


def test_the_proposal_refuses_a_width_of_zero():
    with pytest.raises(ValueError, match="P_std a positive one"):
        TimeProposal(P_std=0.0)


def test_a_sample_depends_on_its_own_index_alone():
    """The same sample in another batch, and no two alike."""
    whole = standard_normal((5, 2), sample_generators(range(5), seed=3))
    part = standard_normal((2, 2), sample_generators([4, 1], seed=3))
    assert torch.equal(part, whole[[4, 1]])
    other = standard_normal((5, 2), sample_generators(range(5), seed=4))
    assert len(torch.cat([whole, other]).unique()) == 20
    with pytest.raises(ValueError, match="one generator per sample"):
        standard_normal((3, 2), sample_generators([0], seed=0))
    with pytest.raises(ValueError, match="seed must be at least 0"):
        sample_generators([0], seed=-1)
