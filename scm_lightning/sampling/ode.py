# SPDX-License-Identifier: Apache-2.0
r"""Solvers of the probability-flow ODE dx/dt = sigma_data F(x / sigma_data, t), from s to t < s.

    DDIM            x_t = cos(s-t) x_s - sin(s-t) sigma_data F_s
    Heun            DDIM - sin(s-t) / (2 cos s) (z_hat_t - z_hat_s),  z_hat_t at the DDIM result
    DPM-Solver++ 2  DDIM + sin(s-t) / (2 r sin s) (D_{s'} - D_s),     s' the step before s
                    r = (log tan s - log tan s') / (log tan s - log tan t)

z_hat is the noise predictor and D the denoiser. Heun is EDM's sampler, written in angles; it is
DPM-Solver-2S with the intermediate point at the end of the step. A step to t = 0 is a DDIM step.
Source: arXiv 2410.11081, Section 3.1 and Appendix D; grid and Heun: arXiv 2206.00364, Table 1.
Axes: B batch, ... data axes.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from scm_lightning.core import TrigFlow, check_num_steps, edm_levels
from scm_lightning.sampling.consistency import check_times

Solver = Literal["ddim", "heun", "dpmpp_2m"]
Evaluate = Callable[[Tensor, Tensor], Tensor]


def time_grid(
    num_steps: int,
    path: TrigFlow,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> list[float]:
    """EDM's grid of noise levels, as angles, ending at 0.

    Args:
        num_steps: solver steps N, at least 2.
        path: owner of `sigma_data`.
        sigma_min: noise level of the last step before 0, in data units.
        sigma_max: noise level of the start, in data units.
        rho: exponent; larger values put more steps near the data.

    Returns:
        N + 1 descending angles, the last one 0. Radians.

    Raises:
        ValueError: if `num_steps` is below 2, or above a million.

    Source: arXiv 2206.00364, Eq. 5; mapped by t = atan(sigma / sigma_data).
    """
    if num_steps < 2:
        raise ValueError(f"an ODE needs at least 2 solver steps, got {num_steps}; EDM uses 18")
    check_num_steps(num_steps)
    levels = edm_levels(num_steps, sigma_max, sigma_min, rho)
    times: list[float] = path.t_from_sigma(levels).tolist()
    return [*times, 0.0]


def num_evaluations(times: Sequence[float], solver: Solver) -> int:
    """Network calls (NFE) of `sample_ode` on a grid."""
    num_steps = len(times) - 1
    return num_steps if solver != "heun" else 2 * num_steps - (times[-1] == 0.0)


@torch.no_grad()
def sample_ode(
    F: Callable[..., Tensor],
    noise: Tensor,
    times: Sequence[float],
    *,
    path: TrigFlow,
    solver: Solver = "heun",
) -> Tensor:
    """Solve the probability-flow ODE of a diffusion network.

    Args:
        F: F(u, t).
        noise: start at `times[0]`. (B, ...), data units: standard deviation `sigma_data`.
        times: descending angles in [0, pi/2], see `time_grid`. Radians.
        path: owner of `sigma_data`.
        solver: "ddim" (order 1), "heun" or "dpmpp_2m" (order 2).

    Returns:
        The solution at `times[-1]`. (B, ...), data units.

    Raises:
        ValueError: if the times leave [0, pi/2] or do not descend, or the solver is unknown.

    Source: arXiv 2410.11081, Section 3.1 and Appendix D.
    """
    check_times(times, last=0.0)
    if solver not in ("ddim", "heun", "dpmpp_2m"):
        raise ValueError(f"solver must be ddim, heun or dpmpp_2m, got {solver!r}")

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        F_x: Tensor = F(x / path.sigma_data, t.expand(x.shape[0]))
        return F_x

    grid = torch.tensor(times, dtype=noise.dtype, device=noise.device)
    x, previous = noise, None
    for s, t in itertools.pairwise(grid):
        F_s = evaluate(x, s)
        x_next = torch.cos(s - t) * x - torch.sin(s - t) * path.sigma_data * F_s
        if t > 0 and solver == "heun":
            x_next = x_next + _heun_correction(evaluate, path, x, F_s, x_next, s, t)
        denoised = path.consistency(F_s, x, s.expand(x.shape[0]))
        if t > 0 and solver == "dpmpp_2m" and previous is not None:
            x_next = x_next + _multistep_correction(previous, denoised, s, t)
        x, previous = x_next, (s, denoised)
    return x


def _heun_correction(
    evaluate: Evaluate, path: TrigFlow, x: Tensor, F: Tensor, x_next: Tensor, s: Tensor, t: Tensor
) -> Tensor:
    """Half the difference of the slopes at both ends of the step."""
    noise_s = path.noise(F, x, s.expand(x.shape[0]))
    noise_t = path.noise(evaluate(x_next, t), x_next, t.expand(x.shape[0]))
    return -torch.sin(s - t) / (2 * torch.cos(s)) * (noise_t - noise_s)


def _multistep_correction(
    previous: tuple[Tensor, Tensor], denoised: Tensor, s: Tensor, t: Tensor
) -> Tensor:
    """Extrapolate the denoiser from the step before."""
    s_before, denoised_before = previous
    log_tan_s = torch.tan(s).log()
    r = (log_tan_s - torch.tan(s_before).log()) / (log_tan_s - torch.tan(t).log())
    return torch.sin(s - t) / (2 * r * torch.sin(s)) * (denoised_before - denoised)
