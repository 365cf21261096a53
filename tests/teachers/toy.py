# SPDX-License-Identifier: Apache-2.0
"""Data that a tiny network learns in seconds, and a linear filter can't: a few random patterns."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scm_lightning.core import TimeProposal, TrigFlow, diffusion_loss

NOISE = 0.1
"""Share of every sample's own noise in its variance's root."""


def toy_data(
    num: int, shape: Sequence[int], num_classes: int, sigma_data: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Samples of a pattern for each class, of the given standard deviation, and their labels.

    The patterns are the same for every `seed`.
    """
    patterns = torch.randn(num_classes, *shape, generator=torch.Generator().manual_seed(1))
    patterns /= patterns.square().mean().sqrt()
    generator = torch.Generator().manual_seed(100 + seed)
    labels = torch.randint(num_classes, (num,), generator=generator)
    own = torch.randn(num, *shape, generator=generator)
    x0 = (patterns[labels] + NOISE * own) / (1 + NOISE**2) ** 0.5
    return sigma_data * x0, labels


def train_on_toy(
    F: Callable[..., Tensor],
    parameters: Sequence[Tensor],
    shape: Sequence[int],
    num_classes: int,
    sigma_data: float,
    *,
    steps: int = 150,
    lr: float = 2e-3,
    with_labels: bool = True,
    **conditions: Tensor,
) -> float:
    """Train F(u, t, labels) of any network as a diffusion model of the toy data.

    Returns:
        The last loss; 1 is that of F = 0.
    """
    path = TrigFlow(sigma_data)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    generator = torch.Generator().manual_seed(5)
    loss = torch.ones(())
    for step in range(steps):
        x0, labels = toy_data(24, shape, num_classes, sigma_data, seed=step)
        noises = TimeProposal(-1.0, 1.2).sample(len(x0), path, generator=generator)
        t = noises.clamp(0.02, 1.5)
        x_t, z = path.add_noise(x0, t, generator)
        predicted = F(x_t / sigma_data, t, labels if with_labels else None, **conditions)
        losses = diffusion_loss(predicted, path.velocity(x0, z, t), sigma_data=sigma_data)
        loss = losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
