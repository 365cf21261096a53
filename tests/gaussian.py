# SPDX-License-Identifier: Apache-2.0
"""Gaussian data N(0, s^2 I), for which everything is known in closed form.

    std(t)^2 = cos^2 s^2 + sin^2 sigma_data^2
    dx/dt    = cos sin (sigma_data^2 - s^2) / std^2 x           along the ODE
    x(t)     = x(t') std(t) / std(t')
    f(x, t)  = s x / std(t)

Source: arXiv 2410.11081, Eq. 4 and 6, solved for a Gaussian.
"""

import torch
from torch import Tensor, nn

from scm_lightning.core import TrigFlow, expand_time

PATH = TrigFlow(sigma_data=0.7)
DATA_STD = 0.3


def std(t: Tensor) -> Tensor:
    """Standard deviation of the data at time t with noise of std sigma_data mixed in."""
    return ((t.cos() * DATA_STD) ** 2 + (t.sin() * PATH.sigma_data) ** 2).sqrt()


def velocity(x_t: Tensor, t: Tensor) -> Tensor:
    """Exact dx/dt of the ODE."""
    factor = t.cos() * t.sin() * (PATH.sigma_data**2 - DATA_STD**2) / std(t) ** 2
    return expand_time(factor, x_t) * x_t


class ExactTeacher(nn.Module):
    """F of the exact diffusion model."""

    def forward(self, u, t, labels=None, guidance=None):
        return velocity(u, t)


class ExactStudent(nn.Module):
    """F of the exact consistency function, times a parameter that is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, u, t, labels=None, guidance=None):
        F = (t.cos() - DATA_STD / std(t)) / t.sin()
        return self.factor * expand_time(F, u) * u
