# SPDX-License-Identifier: Apache-2.0
"""Other processes: one pair (x0, eps) pushed through each gives the same x_t, velocity and F."""

import math

import pytest
import torch

from scm_lightning.core import (
    EDMProcess,
    F_from_eps,
    RectifiedFlowProcess,
    TrigFlow,
    VPProcess,
    expand_time,
)

PATH = TrigFlow(sigma_data=0.7)
T_MAX = PATH.t_max()
TIMES = torch.tensor([1e-6, 1e-3, 0.1, 0.6, 1.1, 1.5, T_MAX], dtype=torch.float64)


def edm_prediction(process, x0, eps, t):
    """What EDM's network body has to predict for its denoiser to return x0."""
    # c_skip x = cos(t) x_t and c_out = sigma_data sin(t)
    z = PATH.sigma_data * eps
    return (expand_time(t.sin(), x0) * x0 - expand_time(t.cos(), x0) * z) / PATH.sigma_data


def flow_prediction(process, x0, eps, t):
    return eps - x0


def vp_prediction(process, x0, eps, t):
    time = process.time_from_t(t)
    return expand_time(process.alpha(time), x0) * eps - expand_time(process.sigma(time), x0) * x0


@pytest.mark.parametrize(
    ("process", "prediction"),
    [
        (EDMProcess(PATH), edm_prediction),
        (RectifiedFlowProcess(PATH), flow_prediction),
        (RectifiedFlowProcess(TrigFlow(1.0)), flow_prediction),
        (VPProcess(PATH), vp_prediction),
    ],
)
def test_a_pair_gives_the_same_x_velocity_and_F(randn, process, prediction):
    path = process.path
    x0, eps, t = randn(7, 3, 2), randn(7, 3, 2), TIMES.clamp(max=path.t_max())
    time = process.time_from_t(t)
    x = expand_time(process.alpha(time), x0) * x0 + expand_time(process.sigma(time), x0) * eps
    z = path.sigma_data * eps
    x_t = expand_time(t.cos(), x0) * x0 + expand_time(t.sin(), x0) * z
    exact = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(process.t_from_time(time), t, **exact)
    torch.testing.assert_close(process.x_to_trigflow(x, time), x_t, **exact)
    torch.testing.assert_close(process.x_from_trigflow(x_t, t) / x, torch.ones_like(x), **exact)
    F = process.F_from_prediction(prediction(process, x0, eps, t), x, t)
    torch.testing.assert_close(path.sigma_data * F, path.velocity(x0, z, t), **exact)


def test_edm_denoiser_is_the_consistency_form(randn):
    """c_skip x + c_out F_EDM of EDM's own formulas equals f with F = -F_EDM."""
    body, x_t = randn(7, 3), randn(7, 3)
    sigma = expand_time(PATH.sigma_from_t(TIMES), x_t)
    x = EDMProcess(PATH).x_from_trigflow(x_t, TIMES)
    total = sigma**2 + PATH.sigma_data**2
    denoised = PATH.sigma_data**2 / total * x + sigma * PATH.sigma_data / total.sqrt() * body
    F = EDMProcess(PATH).F_from_prediction(body, x, TIMES)
    torch.testing.assert_close(PATH.consistency(F, x_t, TIMES), denoised, rtol=1e-10, atol=1e-10)


def test_noise_prediction_gives_F_up_to_t_max(randn):
    x0, eps = randn(7, 3), randn(7, 3)
    z = PATH.sigma_data * eps
    x_t = expand_time(TIMES.cos(), x0) * x0 + expand_time(TIMES.sin(), x0) * z
    F = F_from_eps(eps, x_t / PATH.sigma_data, TIMES)
    torch.testing.assert_close(
        PATH.sigma_data * F, PATH.velocity(x0, z, TIMES), rtol=1e-10, atol=1e-10
    )
    with pytest.raises(ValueError, match="gives no F at pi/2"):
        F_from_eps(eps, x_t, torch.full((7,), math.pi / 2))


def test_vp_is_the_integral_of_beta():
    """alpha^2 = exp(-int_0^time beta), by the trapezoid rule, exact for a linear beta."""
    process, time = VPProcess(PATH, 0.3, 12.0), torch.linspace(0, 1, 9, dtype=torch.float64)
    beta = 0.3 + time * (12.0 - 0.3)
    integral = torch.cat([torch.zeros(1).double(), torch.cumulative_trapezoid(beta, time)])
    torch.testing.assert_close(process.alpha(time) ** 2, (-integral).exp())
    torch.testing.assert_close(process.sigma(time) ** 2, 1 - (-integral).exp())
