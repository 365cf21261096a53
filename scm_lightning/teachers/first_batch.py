# SPDX-License-Identifier: Apache-2.0
r"""A teacher's first look at a user's data: it must denoise them better than any linear filter.

A wrong autoencoder, scale, sign, layout or time leaves a network that runs and denoises badly; a
label that is off by one leaves one that denoises better by a neighbour's label.

    D(x_t) = m + cos t P / (cos^2 t P + sin^2 t sigma_data^2) (x_t - cos t m)   in each frequency

is the best linear filter that is the same everywhere in an image: m is the mean of a channel, P the
power of the data at a frequency.
Source: Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series, 1949.
Axes: B batch, C channels, ... further data axes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_lightning.core import Conditions, TrigFlow, at_least_float32, expand_time, standard_normal
from scm_lightning.core.guidance import Guided

NOISES = (0.3, 1.0, 3.0)
"""Ratios of noise to data at which it looks, sigma / sigma_data."""
NUM_SAMPLES = 64
"""Most samples of a batch that it looks at."""
BETTER = 0.98
"""Part of the error, with labels moved by one, that says the labels are off."""


@dataclass(frozen=True)
class FirstLook:
    """Errors of denoisers on the user's data, mean squares in units of sigma_data^2.

    Attributes:
        teacher: of the teacher, one for each of `NOISES`.
        linear: of the linear filter.
        moved: of the teacher with every label moved by one, up and down, over all noises together;
            empty without labels.
    """

    teacher: list[float]
    linear: list[float]
    moved: dict[int, float]

    def described(self) -> str:
        """One line with the numbers."""
        each = zip(NOISES, self.teacher, self.linear, strict=True)
        errors = ", ".join(f"{own:.3f} ({other:.3f}) at {ratio:g}" for ratio, own, other in each)
        return (
            f"denoising error of the teacher (of a linear filter) at sigma / sigma_data: {errors}"
        )

    def misfit(self) -> str:
        """Say in one clause what is wrong; empty if nothing is."""
        own = sum(self.teacher)
        if not math.isfinite(own):
            return "its output is not finite"
        for offset, error in self.moved.items():
            if error < min(BETTER * own, sum(self.linear)):  # else it is not the labels
                return (
                    f"it denoises them better with every label moved by {offset:+d}, {error:.4f} "
                    f"in place of {own:.4f}; number the classes as in its own data"
                )
        if own >= sum(self.linear):
            return (
                f"it denoises them worse than a linear filter: {self.described()}; the data must "
                "be those it was trained on: the same autoencoder, scale and range of values"
            )
        return ""


@torch.no_grad()
def first_look(
    network: Callable[..., Tensor],
    x0: Tensor,
    given: Conditions,
    path: TrigFlow,
    num_classes: int = 0,
) -> FirstLook:
    """Let a teacher denoise the user's first batch. It draws noise of its own, always the same.

    Args:
        network: F(u, t, labels, **conditions).
        x0: data. (B, C, ...), data units.
        given: their conditions.
        path: owner of `sigma_data`.
        num_classes: classes that the network knows; 0 for no labels.
    """
    x0, given = at_least_float32(x0[:NUM_SAMPLES]), given.first(NUM_SAMPLES)
    noise = standard_normal(x0.shape, torch.Generator().manual_seed(0), dtype=x0.dtype)
    z = path.sigma_data * noise.to(x0.device)
    offsets = (1, -1) if num_classes > 1 and given.labels is not None else ()

    def error(given: Conditions, t: Tensor) -> float:
        angle = expand_time(t, x0)
        x_t = angle.cos() * x0 + angle.sin() * z
        F = Guided(network, given)(x_t / path.sigma_data, t)
        return _mean_square(path.consistency(F, x_t, t) - x0, path)

    teacher, linear, moved = [], [], dict.fromkeys(offsets, 0.0)
    for ratio in NOISES:
        t = torch.full(x0.shape[:1], math.atan(ratio), device=x0.device, dtype=x0.dtype)
        teacher.append(error(given, t))
        linear.append(_mean_square(_filtered(x0, z, math.atan(ratio), path) - x0, path))
        for offset in offsets:
            moved[offset] += error(_moved(given, offset, num_classes), t)
    return FirstLook(teacher, linear, moved)


def _filtered(x0: Tensor, z: Tensor, t: float, path: TrigFlow) -> Tensor:
    """Noisy data through the best linear filter for them. (B, C, ...), data units."""
    axes = tuple(range(2, x0.ndim))
    mean = x0.mean(dim=(0, *axes), keepdim=True)
    cos, sin = math.cos(t), math.sin(t)
    data, noise = x0 - mean, z
    if axes:
        data, noise = (torch.fft.fftn(x, dim=axes, norm="ortho") for x in (data, noise))
    power = data.abs().square().mean(dim=0)
    gain = cos * power / (cos**2 * power + sin**2 * path.sigma_data**2)
    found = gain * (cos * data + sin * noise)
    return mean + (torch.fft.ifftn(found, dim=axes, norm="ortho").real if axes else found)


def _moved(given: Conditions, offset: int, num_classes: int) -> Conditions:
    labels = given.labels
    assert labels is not None
    moved = (labels + offset) % num_classes
    return given._replace(labels=torch.where(labels < 0, labels, moved))


def _mean_square(error: Tensor, path: TrigFlow) -> float:
    return float(error.square().mean()) / path.sigma_data**2
