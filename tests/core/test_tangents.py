# SPDX-License-Identifier: Apache-2.0
"""The tangent: closed forms on Gaussian data, and its bounds."""

import pytest
import torch
from gaussian import PATH, ExactStudent, ExactTeacher, velocity

from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import (
    TangentBound,
    TangentWarmup,
    clip_tangent,
    expand_time,
    normalize_tangent,
    tangent,
    tangent_norm,
)

TIMES = torch.linspace(0.02, 1.56, 9, dtype=torch.float64)


def g_of(network, x_t, t, r):
    dx_dt = velocity(x_t, t)
    F, J = TangentComputer()(network, x_t, t, dx_dt, sigma_data=PATH.sigma_data)
    return tangent(F.detach(), J, x_t, dx_dt, t, sigma_data=PATH.sigma_data, r=r)


def test_tangent_vanishes_for_the_exact_consistency_function(randn):
    """f(x, t) = s x / std(t) is constant along the ODE."""
    g = g_of(ExactStudent(), randn(9, 3), TIMES, r=1.0)
    torch.testing.assert_close(g, torch.zeros_like(g), rtol=0, atol=1e-12)


def test_tangent_is_cos_times_the_derivative_of_f(randn):
    """Against central differences of f along the ODE, for a function that is no solution."""
    x, t, h = randn(9, 3), TIMES, 1e-6

    def network(u, t, labels=None, guidance=None):
        return torch.sin(3 * u) * expand_time(t.cos(), u) + u.square()

    def f(h):
        x_h = x + h * velocity(x, t)  # first order is enough for a central difference
        return PATH.consistency(network(x_h / PATH.sigma_data, t + h), x_h, t + h)

    expected = expand_time(t.cos(), x) * (f(h) - f(-h)) / (2 * h)
    torch.testing.assert_close(g_of(network, x, t, r=1.0), expected, rtol=1e-7, atol=1e-8)


def test_without_warmup_a_student_equal_to_its_teacher_rests(randn):
    """At r = 0 and student = teacher, g is 0; at r = 1 it is not."""
    x = randn(9, 3)
    torch.testing.assert_close(
        g_of(ExactTeacher(), x, TIMES, r=0.0), torch.zeros_like(x), rtol=0, atol=1e-15
    )
    assert float(tangent_norm(g_of(ExactTeacher(), x, TIMES, r=1.0)).min()) > 1e-3


def test_tangent_is_linear_in_the_warmup(randn):
    x, network = randn(9, 3), ExactTeacher()
    ends = g_of(network, x, TIMES, 0.0), g_of(network, x, TIMES, 1.0)
    torch.testing.assert_close(g_of(network, x, TIMES, 0.25), 0.75 * ends[0] + 0.25 * ends[1])


def test_the_tangent_of_float32_is_a_difference_in_float64(randn):
    """Both brackets cancel in a good student: nothing is rounded but what came rounded."""
    F, J, x, dx_dt = (randn(9, 3).float() for _ in range(4))
    options = {"sigma_data": 0.7, "r": 0.6}
    found = tangent(F, J, x, dx_dt, TIMES, **options)
    exact = tangent(F.double(), J.double(), x.double(), dx_dt.double(), TIMES, **options)
    assert found.dtype == torch.float64
    assert torch.equal(found, exact)


def test_norms_by_hand():
    """||(3, 4)|| = 5 as L2, 5 / sqrt(2) as RMS; the constant is in units of the norm."""
    g = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]], [[0.06, 0.08]]], dtype=torch.float64)
    torch.testing.assert_close(tangent_norm(g), torch.tensor([5.0, 0.0, 0.1]).double())
    torch.testing.assert_close(normalize_tangent(g)[0], g[0] / 5.1)
    torch.testing.assert_close(normalize_tangent(g)[1], g[1])
    torch.testing.assert_close(normalize_tangent(g, c=0.3)[2], g[2] / 0.4)
    torch.testing.assert_close(normalize_tangent(g, norm="rms")[0], g[0] / (5 / 2**0.5 + 0.1))


def test_normalizing_treats_every_sample_alone(randn):
    """A sample's result does not depend on its batch, nor on the shape of its axes."""
    g = 50 * randn(5, 2, 3)
    torch.testing.assert_close(normalize_tangent(g)[2:3], normalize_tangent(g[2:3]))
    torch.testing.assert_close(normalize_tangent(g).flatten(1), normalize_tangent(g.flatten(1)))
    assert bool((tangent_norm(normalize_tangent(g)) < 1).all())


def test_clipping_by_hand():
    g = torch.tensor([[-3.0, 0.5, 1.5]])
    assert clip_tangent(g).tolist() == [[-1.0, 0.5, 1.0]]
    with pytest.raises(ValueError, match="clip limit must be positive"):
        clip_tangent(g, 0.0)


def test_warmup_counts_optimizer_steps():
    assert [TangentWarmup(10).r(step) for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert TangentWarmup(0).r(0) == 1.0


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_rcm_s_warm_up_begins_with_the_difference_of_velocities(randn, r):
    """-cos(t) sqrt(1 - r^2 sin^2(t)) in the place of -cos^2(t): the same tangent at r = 1."""
    sigma, F, J, x_t, dx_dt = PATH.sigma_data, *(randn(9, 3) for _ in range(4))
    found, plain = (
        tangent(F, J, x_t, dx_dt, TIMES, sigma_data=sigma, r=r, warmup=kind)
        for kind in ("rcm", "scm")
    )
    if r == 1.0:
        torch.testing.assert_close(found, plain)
    c, s = TIMES.cos()[:, None], TIMES.sin()[:, None]
    ratio = (1 - (r * s) ** 2).sqrt() / c  # of the first terms, at least 1
    torch.testing.assert_close(found - plain, (1 - ratio) * c**2 * (sigma * F - dx_dt))
    assert float(ratio.max()) > (1.0 if r == 1.0 else 10.0) - 1e-9


def test_bad_options_are_refused(randn):
    g = randn(5, 3)
    with pytest.raises(ValueError, match=r"warmup\.steps must be at least 0 .* got -1"):
        TangentWarmup(-1)
    with pytest.raises(ValueError, match="bounded by none has no constant"):
        TangentBound("none", 0.2)
    with pytest.raises(ValueError, match=r"r must be in \[0, 1\], got 1.5"):
        g_of(ExactTeacher(), randn(9, 3), TIMES, r=1.5)
    with pytest.raises(ValueError, match="must not be negative"):
        normalize_tangent(g, c=-0.1)
    with pytest.raises(ValueError, match="must be l2 or rms, got 'max'"):
        normalize_tangent(g, norm="max")
