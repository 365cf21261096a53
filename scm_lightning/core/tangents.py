# SPDX-License-Identifier: Apache-2.0
r"""Tangent of the consistency function: the direction in which the student is trained.

    f(x_t, t) = cos(t) x_t - sin(t) sigma_data F(x_t / sigma_data, t)
    g         = cos(t) df/dt
              = -cos^2(t) (sigma_data F - dx/dt) - r (cos sin x_t + sigma_data cos sin dF/dt)
    g        <- g / (||g|| + c)

rCM's warm-up has -cos(t) sqrt(1 - r^2 sin^2(t)) in place of -cos^2(t), and the same at r = 1.

Source: Lu and Song, arXiv 2410.11081, Algorithm 1. The derivative is carried multiplied by
cos(t) sin(t), as there, so that it stays in range at half precision. The cosine in front of df/dt
is the prior weight 1 / (sigma_data tan t), folded in: multiply it by nothing else.
Axes: B batch, ... data axes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scm_lightning.core.lengths import Length, check_length, steps_of
from scm_lightning.core.trigflow import expand_time, widen

NormKind = Literal["l2", "rms"]
WarmupKind = Literal["scm", "rcm"]


@dataclass(frozen=True)
class TangentWarmup:
    """Ramp of the unstable second term of g: r = min(1, step / steps), 1 without a warm-up.

    Args:
        steps: length of the warm-up H: optimizer steps (10000), a share of `trainer.max_steps`
            (0.5), or None for the whole run; 0 for none.
        kind: "scm" is Algorithm 1. "rcm" begins with -cos(t) (sigma_data F - dx/dt), which weighs
            velocities at t near pi/2 more, as rCM does; both are the same once r is 1.

    Raises:
        ValueError: if `steps` is no length or `kind` unknown.

    Source: arXiv 2410.11081, Algorithm 1, with H = 10,000; "rcm": arXiv 2510.08431, Algorithm 1.
    """

    steps: Length = 10_000
    kind: WarmupKind = "scm"

    def __post_init__(self) -> None:
        check_length(self.steps, "warmup.steps")
        if self.kind not in ("scm", "rcm"):
            raise ValueError(
                f"a tangent warm-up is scm or rcm, got {self.kind!r}; scm is Algorithm 1's"
            )

    def r(self, step: int, max_steps: int | None = None) -> float:
        """The factor r after so many optimizer steps: not micro-batches, not batches.

        Args:
            step: optimizer steps taken so far.
            max_steps: optimizer steps of the run, of which `steps` may be a share.

        Raises:
            ValueError: if `steps` is a share, and the run has no number of steps.
        """
        steps = steps_of(self.steps, "warmup.steps", max_steps)
        return 1.0 if steps == 0 else min(1.0, step / steps)


def tangent(
    F: Tensor,
    cos_sin_dF_dt: Tensor,
    x_t: Tensor,
    dx_dt: Tensor,
    t: Tensor,
    *,
    sigma_data: float,
    r: float,
    warmup: WarmupKind = "scm",
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
        warmup: "scm" for the paper's, "rcm" for rCM's; see `TangentWarmup`.

    Returns:
        g, in float64 where the device has it. (B, ...), data units per radian.

    Raises:
        ValueError: if `r` is outside [0, 1] or `t` is not (B,).

    Source: arXiv 2410.11081, Algorithm 1.
    """
    if not 0.0 <= r <= 1.0:
        raise ValueError(f"tangent warm-up r must be in [0, 1], got {r}; see TangentWarmup")
    # Both brackets are differences of nearly equal terms once the student is good.
    F, cos_sin_dF_dt, x_t, dx_dt, t = map(widen, (F, cos_sin_dF_dt, x_t, dx_dt, t))
    cos, sin = expand_time(t, x_t).cos(), expand_time(t, x_t).sin()
    cos_cos = cos**2 if warmup == "scm" else cos * (1 - (r * sin) ** 2).sqrt()
    return -cos_cos * (sigma_data * F - dx_dt) - r * (cos * sin * x_t + sigma_data * cos_sin_dF_dt)


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
    """Compute the tangent with a difference over one step of the ODE in place of the derivative.

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


@dataclass(frozen=True)
class TangentBound:
    """Bound that keeps a single tangent from dominating the step.

    Args:
        kind: "l2" divides g by its norm plus c, per sample; "rms" by the root mean square plus c;
            "clip" clips its elements to [-1, 1]; "none" leaves it, which the paper finds unstable.
        c: the constant in g / (||g|| + c), in units of the norm.

    Raises:
        ValueError: if the kind is unknown, or has no such `c`.

    Source: arXiv 2410.11081, Section 4.1 and Algorithm 1.
    """

    kind: Literal["l2", "rms", "clip", "none"] = "l2"
    c: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in ("l2", "rms", "clip", "none") or not self.c >= 0:
            raise ValueError(
                f"a tangent is bounded by l2, rms, clip or none, with c >= 0, got {self.kind!r} "
                f"and {self.c}; the paper takes l2 and 0.1"
            )
        if self.kind in ("clip", "none") and self.c != TangentBound.c:
            raise ValueError(
                f"a tangent that is bounded by {self.kind} has no constant, got c {self.c}; take "
                "it out, or set kind to l2 or rms"
            )

    def __call__(self, g: Tensor) -> Tensor:
        """Bound every sample's tangent. (B, ...) to (B, ...)."""
        if self.kind == "clip":
            return clip_tangent(g)
        return g if self.kind == "none" else normalize_tangent(g, self.c, self.kind)


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
