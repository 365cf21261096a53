# SPDX-License-Identifier: Apache-2.0
"""Times of a sampling run: which are accepted, EDM's grid of them, and who is told of each step."""

import itertools
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from scm_lightning.core import TrigFlow, check_num_steps, edm_levels
from scm_lightning.core.times import MAX_TIME

OnStep = Callable[[float, Tensor], object]
"""Function called after every step with the time reached, in radians, and the state there, (B, ...)
in data units: a new tensor at every step, so it may be kept, but not changed in place. For
trajectories and progress."""

ROUNDING = 1e-5
"""Times of pi/2 may lie so far above it, in radians: diffusers' SCMScheduler writes 1.57080."""


def check_times(times: Sequence[float], *, last: float) -> tuple[float, ...]:
    """Refuse sampling times that do not descend from at most pi/2 to at least `last`.

    Args:
        times: angles. Radians.
        last: smallest angle allowed. Radians.

    Returns:
        The times. Radians; pi/2, and what rounding makes of it, as `MAX_TIME`: above that float32
        has a negative noise level.

    Raises:
        ValueError: if they do not.
    """
    times = [float(time) for time in times]  # of a tensor too
    if len(times) > 1 and times[-1] == 0 < last:
        raise ValueError(
            f"the last time must be above 0, where every step leads by itself, got {times}; leave "
            "out the 0"
        )
    if not times or any(not last <= time <= math.pi / 2 + ROUNDING for time in times):
        raise ValueError(
            f"sampling times must be angles in [{last:g}, pi/2], got {times}; a noise level "
            "sigma is the angle atan(sigma / sigma_data)"
        )
    usable = tuple(min(time, MAX_TIME) for time in times)
    if any(later >= earlier for earlier, later in itertools.pairwise(usable)):
        raise ValueError(f"sampling times must descend, got {times}; put the largest first")
    return usable


def check_solver_steps(num_steps: int) -> None:
    """Refuse a number of solver steps that has no grid.

    Raises:
        ValueError: if it is below 2, or above a million.
    """
    if num_steps < 2:
        raise ValueError(f"an ODE needs at least 2 solver steps, got {num_steps}; EDM uses 18")
    check_num_steps(num_steps)


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
    check_solver_steps(num_steps)
    levels = edm_levels(num_steps, sigma_max, sigma_min, rho)
    times: list[float] = path.t_from_sigma(levels).tolist()
    return [*times, 0.0]
