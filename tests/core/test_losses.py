# SPDX-License-Identifier: Apache-2.0
"""The losses: values and gradients by hand, and the fixed point."""

import math

import torch
from gaussian import PATH, ExactStudent, velocity

from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import consistency_loss, diffusion_loss, normalize_tangent, tangent


def test_gradient_of_the_consistency_loss_is_minus_two_e_w_g_over_D(randn):
    """Eq. 8 at F = F^-, elementwise."""
    F, g, w = randn(5, 2, 3).requires_grad_(), randn(5, 2, 3), randn(5)
    consistency_loss(F, g, w).sum().backward()
    torch.testing.assert_close(F.grad, -2 * w.exp()[:, None, None] * g / 6)


def test_value_with_a_unit_tangent_is_one_minus_log_D(randn):
    """At w = log D, at every time: the loss value says nothing."""
    F, g = randn(5, 2, 3), normalize_tangent(randn(5, 2, 3), c=0.0)
    loss = consistency_loss(F, g, torch.full((5,), math.log(6)).double())
    torch.testing.assert_close(loss, torch.full((5,), 1 - math.log(6)).double())


def test_learned_weight_rests_at_the_inverse_of_the_mean_square(randn):
    """d loss / d w = 0 where e^w mean((F - F^- - g)^2) = 1."""
    F, g = randn(5, 6), randn(5, 6)
    w = (-g.square().mean(1).log()).requires_grad_()
    consistency_loss(F, g, w).sum().backward()
    torch.testing.assert_close(w.grad, torch.zeros(5).double(), rtol=0, atol=1e-14)


def test_diffusion_loss_by_hand(randn):
    """Mean square of F - v / sigma_data, weighted."""
    F, v, w = randn(5, 2, 3), randn(5, 2, 3), randn(5)
    plain = diffusion_loss(F, v, sigma_data=0.7)
    torch.testing.assert_close(plain, (F - v / 0.7).square().sum((1, 2)) / 6)
    weighted = diffusion_loss(F, v, sigma_data=0.7, log_weight=w)
    torch.testing.assert_close(weighted, w.exp() * plain - w)


def test_the_exact_consistency_function_is_a_fixed_point_of_training(randn):
    """Its parameters get no gradient, through tangent, normalization and loss."""
    student, x_t = ExactStudent(), randn(9, 3)
    t = torch.linspace(0.02, 1.56, 9, dtype=torch.float64)
    dx_dt = velocity(x_t, t)
    F, J = TangentComputer()(student, x_t, t, dx_dt, sigma_data=PATH.sigma_data)
    g = tangent(F.detach(), J, x_t, dx_dt, t, sigma_data=PATH.sigma_data, r=1.0)
    consistency_loss(F, normalize_tangent(g), torch.zeros(9).double()).mean().backward()
    assert abs(float(student.factor.grad)) < 1e-12
