# SPDX-License-Identifier: Apache-2.0
r"""The check of a teacher's conversion: F must give the denoiser that the source's own code gives.

    D(x, sigma) = cos t x_t - sin t sigma_data F(x_t / sigma_data, t),    x = x_t / cos t,
                                                                          sigma = sigma_data tan t

Axes: B times, one sample each, ... data axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.core import at_least_float32, expand_time
from scm_lightning.core.noise import standard_normal
from scm_lightning.teachers.source import SourceTeacher

LIMITS = {torch.float64: 1e-8}
"""Largest error by the type of the weights; see `Conversion`."""
USUAL_LIMIT = 1e-4
NUM_TIMES = 7

Denoiser = Callable[..., Tensor]
"""D(x, sigma, labels, **conditions) of x = x0 + sigma eps, without labels where there are none."""


@dataclass(frozen=True)
class Conversion:
    """Result of the check.

    Attributes:
        error: largest difference of two denoisers in a sample, in units of the largest number there
            or of what an error of 1 in the network's output makes of it, if that is larger.
        t: where it is. Radians.
        num_times: times that were compared.
        limit: the largest error that is allowed.
    """

    error: float
    t: float
    num_times: int
    limit: float

    def described(self) -> str:
        """One line with the numbers."""
        return (
            f"F agrees with the source's own denoiser to {self.error:.1e} at {self.num_times} "
            f"times, at most {self.limit:g} is allowed"
        )


@torch.no_grad()
def check_conversion(
    teacher: SourceTeacher,
    denoiser: Denoiser,
    shape: Sequence[int],
    labels: Tensor | None = None,
    *,
    times: Tensor | None = None,
    amplified: Tensor | None = None,
    **conditions: Tensor,
) -> Conversion:
    """Compare a teacher with the denoiser of its source, on noise and at times of its range.

    Args:
        teacher: the teacher, in eval mode.
        denoiser: the source's own, not made from the teacher.
        shape: of a sample.
        labels: class labels, one for each time. (B,) int64.
        times: times to compare at, radians; None for seven with both ends of the range. (B,).
        amplified: factors from an error of the network to that of F. (B,).
        conditions: by name. (B, ...) each.

    Returns:
        The error.

    Raises:
        ValueError: if it is larger than the type of the weights explains, or not finite.
    """
    dtype, device = next(
        ((p.dtype, p.device) for p in teacher.parameters()), (torch.float32, "cpu")
    )
    path = teacher.path
    if times is None:
        times = even_times(teacher)
    t = times.to(device)
    noise = standard_normal((len(t), *shape), torch.Generator().manual_seed(0), dtype=dtype)
    u = noise.to(device)
    angle = expand_time(t, u)
    x = (path.sigma_data * u / angle.cos()).to(dtype)
    known = [] if labels is None else [labels]
    expected = denoiser(x, path.sigma_from_t(t).to(dtype), *known, **conditions)
    F = at_least_float32(teacher.F(u, t, labels, **conditions))
    found = path.sigma_data * (angle.cos() * u - angle.sin() * F)
    largest = expected.abs().flatten(1).amax(1).clamp(min=path.sigma_data)
    if amplified is not None:
        largest = torch.maximum(largest, path.sigma_data * t.sin() * amplified.to(t))
    errors = ((found - expected).abs().flatten(1).amax(1) / largest).nan_to_num(torch.inf)
    place = int(errors.argmax())
    limit = LIMITS.get(dtype, USUAL_LIMIT)
    conversion = Conversion(float(errors[place]), float(t[place]), len(t), limit)
    if not conversion.error <= limit:
        raise ValueError(
            f"F of {teacher.source} must give the denoiser of its own code to {limit:g}, got an "
            f"error of {conversion.error:.2g} at t = {conversion.t:.4f}; its process, or what it "
            "predicts, is another than it says"
        )
    return conversion


def even_times(teacher: SourceTeacher) -> Tensor:
    """Times from one end of a teacher's range to the other. (B,), radians."""
    return torch.linspace(*teacher.t_range, NUM_TIMES, dtype=torch.float64)
