# SPDX-License-Identifier: Apache-2.0
r"""Solvers of the probability-flow ODE dx/dt = sigma_data F(x / sigma_data, t), from s to t < s.

    DDIM            x_t = cos(s-t) x_s - sin(s-t) sigma_data F_s
    DPM-Solver-2S   DDIM - sin(s-t) / (2 r cos s) (z_hat_m - z_hat_s),  z_hat_m at a DDIM step to m
                    log tan m = (1 - r) log tan s + r log tan t
    Heun            the same with r = 1: m = t
    DPM-Solver++    DDIM + sin(s-t) / (2 r sin s) (D_{s'} - D_s),     s' the step before s
                    r = (log tan s - log tan s') / (log tan s - log tan t)

z_hat is the noise predictor and D the denoiser. Heun is EDM's sampler, in angles; r = 1/2 is
the middle of the step in half log-SNR, the midpoint method. A step to t = 0 is a DDIM step.

(ours) So is a step from s = pi/2, and DPM-Solver++ forgets it: 1 / cos s and log tan s are infinite
there, as is EDM's noise level, and a DDIM step is the one that has a limit. One such step has an
error of second order, as the whole solution of the others has up to a logarithm.
Source: arXiv 2410.11081, Section 3.1 and Appendix D; Heun: arXiv 2206.00364, Algorithm 1;
multistep: arXiv 2211.01095, Algorithm 2.
Axes: B batch, ... data axes.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from scm_lightning.core import TrigFlow, expand_time
from scm_lightning.core.noise import Generators
from scm_lightning.sampling.churn import Churn
from scm_lightning.sampling.times import ROUNDING, OnStep, check_times

Solver = Literal["ddim", "heun", "dpm-2s", "dpm++"]
Function = Callable[[Tensor, Tensor], Tensor]

LOOK_AHEAD: dict[str, float] = {"heun": 1.0, "dpm-2s": 0.5}
"""r of the solvers with a second network call in every step."""


@torch.no_grad()
def sample_ode(
    F: Function,
    noise: Tensor,
    times: Sequence[float],
    *,
    path: TrigFlow,
    solver: Solver = "heun",
    churn: Churn | None = None,
    generator: Generators = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Solve the probability-flow ODE of a diffusion network.

    Args:
        F: F(u, t), its conditions bound by `core.Bound` or `core.Guided`.
        noise: start at `times[0]`. (B, ...), data units: standard deviation `sigma_data`.
        times: descending angles in [0, pi/2], see `time_grid`. Radians.
        path: owner of `sigma_data`.
        solver: "ddim" (order 1); "heun" or "dpm-2s" (order 2, two network calls a step); "dpm++"
            (order 2, one call, DPM-Solver++(2M)).
        churn: noise to renew before every step; not for "dpm++", which looks back.
        generator: source of that noise; see `standard_normal`.
        on_step: told of every time after the first, and the state there.

    Returns:
        The solution at `times[-1]`. (B, ...), data units.

    Raises:
        ValueError: if the times leave [0, pi/2] or do not descend, or the solver is unknown or
            cannot be churned.

    Source: arXiv 2410.11081, Section 3.1 and Appendix D; churn: arXiv 2206.00364, Algorithm 2.
    """
    times = check_times(times, last=0.0)
    check_solver(solver, churn)
    x, before = noise, None
    for time, end in itertools.pairwise(times):
        if churn is not None:
            x, time = churn.stir(x, time, len(times) - 1, path, generator)
        s, t = _per_sample(time, x), _per_sample(end, x)
        F_s = F(x / path.sigma_data, s)
        x_next = path.jump(F_s, x, s, t)
        if _has_second_order(time, end) and solver in LOOK_AHEAD:
            m = _per_sample(_between(time, end, LOOK_AHEAD[solver]), x)
            x_next = x_next + _look_ahead(F, path, x, F_s, s, m, t) / LOOK_AHEAD[solver]
        if solver == "dpm++" and not _is_all_noise(time):
            now = (s, path.consistency(F_s, x, s))
            if end > 0 and before is not None:
                x_next = x_next + _look_back(before, now, t)
            before = now
        x = x_next
        if on_step is not None:
            on_step(end, x)
    return x


def _look_ahead(
    F: Function, path: TrigFlow, x: Tensor, F_s: Tensor, s: Tensor, m: Tensor, t: Tensor
) -> Tensor:
    """Correct a DDIM step by how the noise predictor changes until m, for r = 1."""
    x_m = path.jump(F_s, x, s, m)
    change = path.noise(F(x_m / path.sigma_data, m), x_m, m) - path.noise(F_s, x, s)
    return expand_time(-torch.sin(s - t) / (2 * torch.cos(s)), x) * change


def _look_back(before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
    """Correct a DDIM step by how the denoiser changed in the step before."""
    (s_before, D_before), (s, D) = before, now
    log_tan_s = torch.tan(s).log()
    r = (log_tan_s - torch.tan(s_before).log()) / (log_tan_s - torch.tan(t).log())
    return expand_time(torch.sin(s - t) / (2 * r * torch.sin(s)), D) * (D_before - D)


def _between(s: float, t: float, r: float) -> float:
    """The time at a share r of the step from s to t, in half log-SNR. Radians."""
    return t if r == 1 else math.atan(math.tan(s) ** (1 - r) * math.tan(t) ** r)


def _is_all_noise(time: float) -> bool:
    """Tell whether a time is pi/2, up to rounding."""
    return math.cos(time) < ROUNDING


def _has_second_order(time: float, end: float) -> bool:
    """Tell whether a step is more than a DDIM step."""
    return end > 0 and not _is_all_noise(time)


def _per_sample(time: float, x: Tensor) -> Tensor:
    """One time for every sample. (B,), radians."""
    return torch.full(x.shape[:1], time, dtype=x.dtype, device=x.device)


def check_solver(solver: str, churn: Churn | None) -> None:
    """Refuse a solver that does not exist, or cannot be churned.

    Raises:
        ValueError: if it is one.
    """
    if solver not in ("ddim", "heun", "dpm-2s", "dpm++"):
        raise ValueError(
            f"solver must be ddim, heun, dpm-2s or dpm++, got {solver!r}; dpmpp_2m is dpm++ now"
        )
    if churn is not None and solver == "dpm++":
        raise ValueError(
            "churn needs a solver of single steps, got dpm++, whose step looks back at the one "
            "before; take heun"
        )
