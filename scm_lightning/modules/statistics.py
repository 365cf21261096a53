# SPDX-License-Identifier: Apache-2.0
r"""Check that data have the scale the path was told, by the first samples of a run.

    m_c, v_c        mean and variance of channel c, over samples and places
    v               the same variance over all channels, about the mean of all
    e(s) = SE(v) / (2 v)                       standard error of log s, s = sqrt(v)

    log(s / sigma_data)^2   <= log(1.15)^2 + (k e(s))^2      or the data are refused
    log(s_c / sigma_data)^2 <= log(3)^2 + (k e(s_c))^2       or are refused: one is dead, or loud
    m_c^2                   <= sigma_data^2 + (k SE(m_c))^2  or a warning says so

Elements of a sample are anything but independent, so all errors are of N samples, taken from the
spread of what every single sample says. Errors of few samples, and of heavy tails, are uncertain
themselves, so k = 6 (1 + 10 / N). Of 144,000 drawn sets of 8 to 256 samples of the right scale, of
digits, Gaussians, few classes, t-distributed and log-normal contrasts, 12 were refused.

A channel may differ more than the whole: latents as they come have channels of half and of one and
a half times the deviation of all. Source: sigma_data is arXiv 2410.11081's sigma_d; limits (ours).
Axes: N samples, C channels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scm_lightning.core import widen

WHOLE_TOLERANCE = 1.15
"""Largest ratio of the standard deviation of all data to `sigma_data`, or inversely."""
CHANNEL_TOLERANCE = 3.0
"""Largest such ratio of one channel."""
CERTAINTY = 6.0
"""Standard errors that a measurement may be off, of many samples."""
LEAST_SAMPLES = 8
"""Fewest samples whose errors say anything."""

Total = Callable[[Tensor], Tensor]
"""Sum of a tensor over processes."""


def sample_moments(x0: Tensor) -> Tensor:
    """Means of x and of x^2 over the places of every sample and channel.

    Args:
        x0: data. (B, C, ...), data units.

    Returns:
        (2, B, C), in the widest type of the device.
    """
    x = widen(x0.detach()).reshape(*x0.shape[:2], -1)
    return torch.stack([x.mean(2), x.square().mean(2)])


def check_scale(moments: Tensor, sigma_data: float, total: Total) -> str | None:
    """Refuse data whose scale is not `sigma_data`, on all processes alike.

    Args:
        moments: of the samples of this process; see `sample_moments`. (2, N, C).
        sigma_data: the standard deviation that they should have. Data units.
        total: sums over processes; called by all of them together.

    Returns:
        A warning about the means if they are large; else None.

    Raises:
        ValueError: if all data, or a channel, are of another scale, or not finite.
    """
    first, second = moments
    mean, mean_error, num = _over_samples(first, total)
    if num < LEAST_SAMPLES:
        return None
    about_one = (second - 2 * mean.mean() * first + mean.mean() ** 2).mean(1, keepdim=True)
    about_own = second - 2 * mean * first + mean**2
    variance, variance_error, _ = _over_samples(torch.cat([about_one, about_own], 1), total)
    certainty = CERTAINTY * (1 + 10 / num)
    variance = variance.clamp(min=0)  # of a constant, rounding may leave less
    log_ratio = (variance.sqrt() / sigma_data).log()
    error = certainty * (variance_error / (2 * variance)).nan_to_num(0.0, 0.0)
    tolerance = torch.full_like(error, math.log(CHANNEL_TOLERANCE))
    tolerance[0] = math.log(WHOLE_TOLERANCE)
    _refuse(log_ratio, tolerance.hypot(error), sigma_data, num)
    beyond = mean.abs() - (certainty * mean_error).square().add(sigma_data**2).sqrt()
    worst = int(beyond.argmax())
    if not beyond[worst] > 0:
        return None
    return (
        f"the mean of channel {worst} of the data is {float(mean[worst]):.4g} over {num} samples, "
        f"farther from 0 than sigma_data = {sigma_data:g}; subtract it, unless it is intended"
    )


def _over_samples(values: Tensor, total: Total) -> tuple[Tensor, Tensor, int]:
    """Means (K,) over the samples of all processes, their standard errors, and N. Of (N, K)."""
    num = int(total(values.new_tensor(len(values))))
    mean = total(values.sum(0)) / num
    squares = total((values - mean).square().sum(0))
    return mean, (squares / max(num - 1, 1) / num).sqrt(), num


def _refuse(log_ratio: Tensor, limit: Tensor, sigma_data: float, num: int) -> None:
    """Raise where a ratio of standard deviations, the first of all data, is beyond its limit."""
    fits = log_ratio.abs() <= limit  # NaN does not
    if bool(fits.all()):
        return
    place = int((~fits).to(torch.uint8).argmax())
    std, low, high = (
        sigma_data * math.exp(float(each[place])) for each in (log_ratio, -limit, limit)
    )
    taken = f"over {num} samples, where {low:.3g} to {high:.3g} is accepted"
    if not place:
        raise ValueError(
            f"the data must have standard deviation sigma_data = {sigma_data:g}, got {std:.4g} "
            f"{taken}; set path.sigma_data to it, or scale the data"
        )
    raise ValueError(
        f"every channel of the data must have a standard deviation near sigma_data = "
        f"{sigma_data:g}, got {std:.4g} in channel {place - 1} {taken}; scale every channel by "
        "itself, and leave out one that never changes"
    )
