# SPDX-License-Identifier: Apache-2.0
"""Flow maps and their residual, by the closed form of Gaussian data."""

import torch
from gaussian import PATH, std, velocity
from torch import nn

from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import (
    AVERAGE_VELOCITY,
    TRIGONOMETRIC,
    adaptive_loss,
    expand_time,
    tangent,
)

T = torch.tensor([0.3, 0.7, 1.1, 1.4, 1.55], dtype=torch.float64)
S = torch.tensor([0.0, 0.2, 1.0, 0.5, 1.5], dtype=torch.float64)


def residual(flow_map, F, b_dF_dt, x_t, dx_dt, ends):
    sigma_data = PATH.sigma_data
    return flow_map.residual(F.detach(), b_dF_dt, x_t, dx_dt, T - ends, sigma_data=sigma_data)


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
    G = residual(AVERAGE_VELOCITY, F, duration_dF_dt, x_t, dx_dt, S)
    torch.testing.assert_close(G, torch.zeros_like(G), rtol=0, atol=1e-10)
    x_s = AVERAGE_VELOCITY.jump(F, x_t, T, S, sigma_data=PATH.sigma_data)
    torch.testing.assert_close(x_s, expand_time(std(S) / std(T), x_t) * x_t)


def test_the_residual_is_a_difference_in_float64(randn):
    """Of nearly equal terms, whatever precision they come in."""
    F, product, x_t, dx_dt = (randn(5, 2, 3).float() for _ in range(4))
    G = residual(AVERAGE_VELOCITY, F, product, x_t, dx_dt, S)
    expected = (dx_dt / PATH.sigma_data).double() - F.double() - product.double()
    torch.testing.assert_close(G, expected, rtol=0, atol=1e-15)


def test_the_residuals_are_derivatives_of_the_maps_along_the_ode(randn):
    """dX/dt / sigma_data of any network, by central differences; and Algorithm 1's g is one."""
    x_t, h = PATH.sigma_data * randn(5, 2, 3), 1e-5
    dx_dt = velocity(x_t, T)

    def network(u, t, labels=None, guidance=None, t_end=None):
        return (3 * u).sin() * expand_time((t - 0.3 * t_end).cos(), u)

    for flow_map in (AVERAGE_VELOCITY, TRIGONOMETRIC):

        def X(h, flow_map=flow_map):
            x, t = x_t + h * dx_dt, T + h
            return flow_map.jump(network(x / PATH.sigma_data, t, t_end=S), x, t, S, sigma_data=0.7)

        F, b_dF_dt = TangentComputer("two_pass")(
            network,
            *(x_t, T, dx_dt),
            sigma_data=PATH.sigma_data,
            t_end=S,
            scale=flow_map.scale(T, S),
        )
        G = residual(flow_map, F, b_dF_dt, x_t, dx_dt, S)
        expected = (X(h) - X(-h)) / (2 * h) / PATH.sigma_data
        torch.testing.assert_close(G, expected, rtol=1e-7, atol=1e-7)
    duration = T - S
    cos_sin = expand_time(duration.cos(), F) * b_dF_dt
    g = tangent(F, cos_sin, x_t, dx_dt, duration, sigma_data=PATH.sigma_data, r=1.0)
    torch.testing.assert_close(g, PATH.sigma_data * expand_time(duration.cos(), G) * G)


def test_a_wrong_flow_map_misses_it(randn):
    """One that always says the velocity does, except where s = t."""
    x_t = PATH.sigma_data * randn(5, 2, 3)
    dx_dt, ends = velocity(x_t, T), torch.where(T > 1.2, T, S)

    def instantaneous(u, t, labels, guidance, t_end):
        return velocity(u, t)

    F, duration_dF_dt = TangentComputer("two_pass")(
        instantaneous, x_t, T, dx_dt, sigma_data=PATH.sigma_data, t_end=ends, scale=T - ends
    )
    error = residual(AVERAGE_VELOCITY, F, duration_dF_dt, x_t, dx_dt, ends).flatten(1).norm(dim=1)
    assert float(error[3:].max()) < 1e-12
    assert float(error[:3].min()) > 1e-3


def test_loss_by_hand(randn):
    """d^2 / (d^2 + c)^p, with the weight constant in the gradient."""
    F, target = randn(5, 2, 3).requires_grad_(), randn(5, 2, 3)
    squared = (F - target).square().sum(dim=(1, 2))
    loss = adaptive_loss(F, target, p=0.5, c=0.1)
    torch.testing.assert_close(loss, squared / (squared + 0.1).sqrt())
    (gradient,) = torch.autograd.grad(loss.sum(), F)
    weight = expand_time((squared + 0.1).rsqrt(), F)
    torch.testing.assert_close(gradient, weight * 2 * (F - target))
    torch.testing.assert_close(adaptive_loss(F, target, p=0.0), squared)
