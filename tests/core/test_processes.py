# SPDX-License-Identifier: Apache-2.0
"""Other processes: one pair (x0, eps) pushed through each gives the same x_t, velocity and F."""

import math
from dataclasses import replace

import pytest
import torch

from scm_lightning.core import (
    DiscreteProcess,
    EDMProcess,
    F_from_eps,
    RectifiedFlowProcess,
    TrigFlow,
    VPProcess,
    expand_time,
    linear_alphas_bar,
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


LINEAR = linear_alphas_bar()
ZERO_SNR = (*(0.9 - 0.8 * n / 9 for n in range(10)), 0.0)
DISCRETE = (
    DiscreteProcess(PATH, LINEAR),
    DiscreteProcess(PATH, linear_alphas_bar(8.5e-4, 1.2e-2, root=True)),
    DiscreteProcess(PATH, ZERO_SNR),
)
PROCESSES = (RectifiedFlowProcess(PATH), VPProcess(PATH), EDMProcess(PATH), *DISCRETE)


def ends(process, predicts):
    """Angles from one end of a process to the other, as near as a prediction says something."""
    if isinstance(process, DiscreteProcess):
        last = len(process.alphas_bar) - 1
        if predicts == "epsilon" and process.ends_in_noise:
            last -= 1
        whole = process.t_from_time(torch.tensor([0.0, last]).double()).tolist()
    else:
        bounded = isinstance(process, EDMProcess) or predicts == "epsilon"
        whole = [1e-5 if predicts == "sample" else 0.0, T_MAX if bounded else math.pi / 2]
    return torch.linspace(*whole, 9, dtype=torch.float64)


@pytest.mark.parametrize(
    "predicts", ["epsilon", "sample", "v_prediction", "flow_prediction", "edm"]
)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda each: type(each).__name__)
def test_the_best_prediction_of_gaussian_data_is_the_known_F(randn, process, predicts):
    """Closed form: E[x0 | x'] of data N(0, s^2), mixed with E[eps | x'] as the prediction says."""
    process = replace(process, predicts=predicts)
    if predicts == "v_prediction" and not isinstance(process, DiscreteProcess | VPProcess):
        return  # it is that of alpha^2 + sigma^2 = 1
    t, data_std = ends(process, predicts), 0.4
    u = randn(9, 3, 2)
    time, angle = process.time_from_t(t), expand_time(t, u)
    x = process.x_from_trigflow(PATH.sigma_data * u, t)
    alpha, sigma = (expand_time(f(time), u) for f in (process.alpha, process.sigma))
    variance = alpha**2 * data_std**2 + sigma**2
    x0, eps = alpha * data_std**2 / variance * x, sigma / variance * x
    mixed = {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": alpha * eps - sigma * x0,
        "flow_prediction": eps - x0,
        "edm": angle.sin() * x0 / PATH.sigma_data - angle.cos() * eps,
    }[predicts]
    known = angle.cos() ** 2 * data_std**2 + angle.sin() ** 2 * PATH.sigma_data**2
    F = angle.cos() * angle.sin() * (PATH.sigma_data**2 - data_std**2) / known * u
    found = process.F_from_prediction(mixed, x, t)
    exact = 1e-11 * float(process.amplification(t).max())
    torch.testing.assert_close(found, F, rtol=0, atol=max(exact, 1e-11))


@pytest.mark.parametrize("process", DISCRETE, ids=["linear", "scaled", "zero SNR"])
def test_a_discrete_process_is_exact_at_whole_steps_and_inverts_between(process):
    kept = torch.tensor(process.alphas_bar, dtype=torch.float64)
    whole = torch.arange(len(kept)).double()
    torch.testing.assert_close(process.alpha(whole), kept.sqrt(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(process.sigma(whole), (1 - kept).sqrt(), rtol=1e-12, atol=0)
    t = torch.atan2((1 - kept).sqrt(), PATH.sigma_data * kept.sqrt())
    torch.testing.assert_close(process.time_from_t(t), whole, rtol=1e-12, atol=1e-9)
    between = torch.linspace(0, len(kept) - 1.001, 77, dtype=torch.float64)
    back = process.time_from_t(process.t_from_time(between))
    torch.testing.assert_close(back, between, rtol=0, atol=1e-9)
    beyond = torch.tensor([1e-9, math.pi / 2], dtype=torch.float64)
    torch.testing.assert_close(
        process.time_from_t(beyond), torch.tensor([0, len(kept) - 1]).double(), rtol=0, atol=1e-9
    )


def test_between_steps_the_logarithm_of_the_ratio_is_linear_and_before_all_noise_its_inverse_is():
    first, last = DISCRETE[0], DISCRETE[2]
    steps = torch.tensor([500.0, 500.5, 501.0]).double()
    ratio = (first.sigma(steps) / first.alpha(steps)).log()
    torch.testing.assert_close(ratio[1], (ratio[0] + ratio[2]) / 2, rtol=1e-12, atol=0)
    steps = torch.tensor([9.0, 9.5, 10.0]).double()
    inverse = last.alpha(steps) / last.sigma(steps)
    torch.testing.assert_close(inverse[1], (inverse[0] + inverse[2]) / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("table", [(0.5,), (0.5, 0.5), (1.0, 0.5), (0.5, -0.1), (0.3, 0.4)])
def test_a_table_that_does_not_fall_is_refused(table):
    with pytest.raises(ValueError, match="alphas_bar must be two or more numbers that fall"):
        DiscreteProcess(PATH, table)


def test_only_noise_and_data_amplify_an_error():
    t = torch.tensor([0.05, 0.8, 1.5]).double()
    for predicts, expected in [("epsilon", 1 / t.cos()), ("sample", 1 / t.sin())]:
        process = DiscreteProcess(PATH, LINEAR, predicts=predicts)
        torch.testing.assert_close(process.amplification(t), expected)
    most = 1 / PATH.sigma_data
    assert float(RectifiedFlowProcess(PATH).amplification(t).max()) < most
    assert (
        float(DiscreteProcess(PATH, LINEAR, predicts="v_prediction").amplification(t).max()) < most
    )
