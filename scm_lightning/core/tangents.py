# SPDX-License-Identifier: Apache-2.0
r"""Tangent of the consistency function: the direction in which the student is trained.

    f(x_t, t) = cos(t) x_t - sin(t) sigma_data F(x_t / sigma_data, t)
    g         = cos(t) df/dt
              = -cos^2(t) (sigma_data F - dx/dt) - r (cos sin x_t + sigma_data cos sin dF/dt)
    g        <- g / (||g|| + c)

Source: Lu and Song, arXiv 2410.11081, Algorithm 1. The derivative is carried multiplied by
cos(t) sin(t), as there, so that it stays in range at half precision. The cosine in front of df/dt
is the prior weight 1 / (sigma_data tan t), folded in: nothing else is to be multiplied onto it.
Axes: B batch, ... data axes.
"""

from typing import Literal

import torch
from torch import Tensor

from scm_lightning.core.trigflow import expand_time, widen

NormKind = Literal["l2", "rms"]


def tangent_warmup(step: int, num_steps: int) -> float:
    """Warm-up factor r = min(1, step / num_steps), 1 where `num_steps` is 0.

    Args:
        step: optimizer steps taken so far: not micro-batches, not batches.
        num_steps: length of the warm-up H, in optimizer steps.

    Raises:
        ValueError: if `num_steps` is negative.

    Source: arXiv 2410.11081, Algorithm 1, with H = 10,000.
    """
    if num_steps < 0:
        raise ValueError(
            f"tangent_warmup_steps must be at least 0, got {num_steps}; the paper takes 10000"
        )
    return 1.0 if num_steps == 0 else min(1.0, step / num_steps)


def tangent(
    F: Tensor,
    cos_sin_dF_dt: Tensor,
    x_t: Tensor,
    dx_dt: Tensor,
    t: Tensor,
    *,
    sigma_data: float,
    r: float,
) -> Tensor:
    """Compute the tangent g = cos(t) df/dt with warm-up, before normalization.

    Args:
        F: network output at (x_t / sigma_data, t), detached. (B, ...), unit variance.
        cos_sin_dF_dt: cos(t) sin(t) times the total derivative of F along the ODE. (B, ...), per
            radian.
        x_t: noisy data. (B, ...), data units.
        dx_dt: ODE velocity, from the teacher (sCD) or from x0 and z (sCT). (B, ...), data units
            per radian.
        t: times in [0, pi/2]. (B,), radians.
        sigma_data: standard deviation of the data, in data units.
        r: tangent warm-up in [0, 1]; 0 leaves out the second, unstable term.

    Returns:
        g, in float64 where the device has it. (B, ...), data units per radian.

    Raises:
        ValueError: if `r` is outside [0, 1] or `t` is not (B,).

    Source: arXiv 2410.11081, Algorithm 1.
    """
    if not 0.0 <= r <= 1.0:
        raise ValueError(f"tangent warm-up r must be in [0, 1], got {r}; see tangent_warmup")
    # Both brackets are differences of nearly equal terms once the student is good.
    F, cos_sin_dF_dt, x_t, dx_dt, t = map(widen, (F, cos_sin_dF_dt, x_t, dx_dt, t))
    cos, sin = expand_time(t, x_t).cos(), expand_time(t, x_t).sin()
    return -(cos**2) * (sigma_data * F - dx_dt) - r * (cos * sin * x_t + sigma_data * cos_sin_dF_dt)


def discrete_tangent(
    F: Tensor,
    F_before: Tensor,
    x_t: Tensor,
    dx_dt: Tensor,
    t: Tensor,
    t_before: Tensor,
    *,
    sigma_data: float,
    r: float,
) -> Tensor:
    """The tangent with a difference over one step of the ODE in the place of the derivative.

    Args:
        F: network output at (x_t / sigma_data, t), detached. (B, ...), unit variance.
        F_before: network output at `t_before`, one DDIM step along `dx_dt` further. (B, ...), unit
            variance.
        x_t: noisy data. (B, ...), data units.
        dx_dt: ODE velocity at t. (B, ...), data units per radian.
        t: times. (B,), radians.
        t_before: smaller times, at least 0. (B,), radians.
        sigma_data: standard deviation of the data, in data units.
        r: tangent warm-up in [0, 1].

    Returns:
        g, in float64 where the device has it; `tangent`'s in the limit of small steps. (B, ...),
            data units per radian.

    Source: arXiv 2410.11081, Algorithm 2 (dsCD).
    """
    F, F_before, x_t, dx_dt, t = map(widen, (F, F_before, x_t, dx_dt, t))
    cos = expand_time(t, x_t).cos()
    before = expand_time(widen(t_before), x_t)
    step = expand_time(t, x_t) - before
    dF = sigma_data * (step.cos() * F - F_before) / step.sin()
    df = -before.cos() * (sigma_data * F - dx_dt) - r * before.sin() * (x_t + dF)
    return cos * df


def tangent_norm(g: Tensor, norm: NormKind = "l2") -> Tensor:
    """Norm of every sample's tangent.

    Args:
        g: tangent. (B, ...).
        norm: "l2" is the root of the sum over the D elements of a sample, "rms" of their mean.

    Returns:
        The norms, in the units of `g`. (B,).
    """
    l2: Tensor = torch.linalg.vector_norm(g.flatten(1), dim=1)
    return l2 if norm == "l2" else l2 / g[0].numel() ** 0.5


def normalize_tangent(g: Tensor, c: float = 0.1, norm: NormKind = "l2") -> Tensor:
    """Scale every sample's tangent to g / (||g|| + c).

    Args:
        g: tangent. (B, ...).
        c: added to the norm, in the norm's own units; keeps small tangents small.
        norm: "l2", as rCM and SANA-Sprint read the paper, makes g a unit vector. "rms" (ours, also
            FastGen's) divides the norm by sqrt(D): then c weighs as much as the tangent itself.

    Returns:
        Normalized g. (B, ...).

    Raises:
        ValueError: if `c` is negative or `norm` is unknown.

    Source: arXiv 2410.11081, Section 4.1 and Algorithm 1, c = 0.1. The paper does not define the
    norm.
    """
    if not c >= 0:
        raise ValueError(f"tangent norm constant c must not be negative, got {c}; paper: 0.1")
    if norm not in ("l2", "rms"):
        raise ValueError(f"tangent norm must be l2 or rms, got {norm!r}; the default is l2")
    return g / expand_time(tangent_norm(g, norm) + c, g)


def clip_tangent(df_dt: Tensor, limit: float = 1.0) -> Tensor:
    """Clip every element of a tangent to [-limit, limit], the paper's alternative to normalizing.

    Args:
        df_dt: tangent df/dt or g. (B, ...).
        limit: largest magnitude left, positive.

    Raises:
        ValueError: if `limit` is not positive.

    Source: arXiv 2410.11081, Section 4.1: clip(df/dt, -1, 1).
    """
    if limit <= 0:
        raise ValueError(f"tangent clip limit must be positive, got {limit}; the paper uses 1")
    return df_dt.clamp(-limit, limit)
