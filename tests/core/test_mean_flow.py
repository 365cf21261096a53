# SPDX-License-Identifier: Apache-2.0
"""MeanFlow's identity and step, by the closed form of Gaussian data."""

import torch
from gaussian import PATH, std, velocity
from torch import nn

from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import expand_time, flow_step, mean_flow_loss, mean_flow_target

T = torch.tensor([0.3, 0.7, 1.1, 1.4, 1.55], dtype=torch.float64)
S = torch.tensor([0.0, 0.2, 1.0, 0.5, 1.5], dtype=torch.float64)


class ExactMeanFlow(nn.Module):
    """sigma_data F = (x_t - x_s) / (t - s), with x_s = x_t std(s) / std(t)."""

    def forward(self, u, t, labels, guidance, t_end):
        return expand_time((1 - std(t_end) / std(t)) / (t - t_end), u) * u


def test_the_exact_flow_map_meets_the_identity(randn):
    """F equals its target, and a step lands on the ODE's solution."""
    x_t = PATH.sigma_data * randn(5, 2, 3)
    dx_dt = velocity(x_t, T)
    F, duration_dF_dt = TangentComputer()(
        ExactMeanFlow(), x_t, T, dx_dt, sigma_data=PATH.sigma_data, t_end=S, scale=T - S
    )
    target = mean_flow_target(duration_dF_dt, dx_dt, sigma_data=PATH.sigma_data)
    torch.testing.assert_close(F, target, rtol=1e-10, atol=1e-10)
    x_s = flow_step(F, x_t, T, S, sigma_data=PATH.sigma_data)
    torch.testing.assert_close(x_s, expand_time(std(S) / std(T), x_t) * x_t)


def test_the_target_is_a_difference_in_float64(randn):
    """Of nearly equal terms, whatever precision they come in."""
    dx_dt, product = randn(5, 2, 3).float(), randn(5, 2, 3).float()
    target = mean_flow_target(product, dx_dt, sigma_data=0.7)
    torch.testing.assert_close(target, dx_dt.double() / 0.7 - product.double(), rtol=0, atol=1e-15)


def test_a_wrong_flow_map_misses_it(randn):
    """One that always says the velocity does, except where s = t."""
    x_t = PATH.sigma_data * randn(5, 2, 3)
    dx_dt, ends = velocity(x_t, T), torch.where(T > 1.2, T, S)

    def instantaneous(u, t, labels, guidance, t_end):
        return velocity(u, t)

    F, duration_dF_dt = TangentComputer("two_pass")(
        instantaneous, x_t, T, dx_dt, sigma_data=PATH.sigma_data, t_end=ends, scale=T - ends
    )
    target = mean_flow_target(duration_dF_dt, dx_dt, sigma_data=PATH.sigma_data)
    error = (F - target).flatten(1).norm(dim=1)
    assert float(error[3:].max()) < 1e-12
    assert float(error[:3].min()) > 1e-3


def test_loss_by_hand(randn):
    """d^2 / (d^2 + c)^p, with the weight constant in the gradient."""
    F, target = randn(5, 2, 3).requires_grad_(), randn(5, 2, 3)
    squared = (F - target).square().mean(dim=(1, 2))
    loss = mean_flow_loss(F, target, p=0.5, c=0.1)
    torch.testing.assert_close(loss, squared / (squared + 0.1).sqrt())
    (gradient,) = torch.autograd.grad(loss.sum(), F)
    weight = expand_time((squared + 0.1).rsqrt(), F)
    torch.testing.assert_close(gradient, weight * 2 * (F - target) / 6)
    torch.testing.assert_close(mean_flow_loss(F, target, p=0.0), squared)
