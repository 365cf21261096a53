# SPDX-License-Identifier: Apache-2.0
r"""The two losses, one value per sample.

    diffusion:   e^w / D ||F - v_t / sigma_data||^2 - w,              w = 0 if not learned
    consistency: e^w / D ||F - F^- - g||^2 - w,                       F^- = stop-gradient of F

D is the number of elements of one sample and w = w_phi(t) the learned log weight, of the opposite
sign to EDM2's `logvar`. At F = F^- the consistency loss has the gradient -2 e^w g / D in F.
The value of the consistency loss says nothing about the health of a run: with a unit g it is
1 - log D at the optimal w, whatever the student does. Watch the norm of g and the samples.
Source: Lu and Song, arXiv 2410.11081, Eq. 4, Eq. 8 and Algorithm 1; e^w form of Eq. 4: EDM2.
Axes: B batch, ... data axes.
"""

from torch import Tensor

from scm_lightning.core.trigflow import at_least_float32


def diffusion_loss(
    F: Tensor, dx_dt: Tensor, *, sigma_data: float, log_weight: Tensor | None = None
) -> Tensor:
    """Velocity matching, in the network's units.

    Args:
        F: network output at (x_t / sigma_data, t). (B, ...), unit variance.
        dx_dt: velocity of the pair, cos(t) z - sin(t) x0. (B, ...), data units per radian.
        sigma_data: standard deviation of the data, in data units.
        log_weight: w(t). (B,), or None for weight 1.

    Returns:
        Loss of every sample. (B,).

    Source: arXiv 2410.11081, Eq. 4, divided by sigma_data^2 D.
    """
    squared = (at_least_float32(F) - dx_dt / sigma_data).square().flatten(1).mean(1)
    if log_weight is None:
        return squared
    return log_weight.exp() * squared - log_weight


def consistency_loss(F: Tensor, g: Tensor, log_weight: Tensor) -> Tensor:
    """Mean squared distance of F to F^- + g, weighted.

    Args:
        F: network output with its gradient. (B, ...), unit variance.
        g: tangent after normalization, without gradient. (B, ...).
        log_weight: w_phi(t). (B,).

    Returns:
        Loss of every sample, at the precision of `g`. (B,).

    Source: arXiv 2410.11081, Eq. 8 and Algorithm 1.
    """
    F = F.to(g.dtype)
    squared = (F - F.detach() - g).square().flatten(1).mean(1)
    return log_weight.exp() * squared - log_weight
