# SPDX-License-Identifier: Apache-2.0
"""Frechet distance of Gaussians fitted to two sets of feature vectors, in float64.

    d^2 = |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2))

m, C: mean and covariance (divided by count - 1) of a set. The trace of the root is the sum of the
roots of the eigenvalues of C C', which are real and at least 0 up to rounding.

Sets of features come in batches and are merged without their squares being summed far from the
mean (Chan, Golub, LeVeque: "Updating Formulae and a Pairwise Algorithm", 1979).

Source: Heusel et al., arXiv 1706.08500, equation 6.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """Mean and covariance of a set of feature vectors.

    Attributes:
        mean: (D,), float64.
        cov: (D, D), float64.
        num_samples: number of vectors.
    """

    mean: Tensor
    cov: Tensor
    num_samples: int


class RunningStatistics:
    """Statistics of features that come in batches.

    Args:
        num_features: length D of a feature vector.
    """

    def __init__(self, num_features: int) -> None:
        self._mean = torch.zeros(num_features, dtype=torch.float64)
        self._scatter = torch.zeros(num_features, num_features, dtype=torch.float64)
        self._count = 0

    def add(self, features: Tensor) -> None:
        """Add a batch. (B, D), on the CPU."""
        if not len(features):
            return
        x = features.double()
        mean = x.mean(0)
        centred, shift = x - mean, mean - self._mean
        count = self._count + len(x)
        self._scatter += centred.T @ centred
        self._scatter += torch.outer(shift, shift) * (self._count * len(x) / count)
        self._mean += shift * (len(x) / count)
        self._count = count

    def result(self) -> Statistics:
        """Statistics of what has been added."""
        return Statistics(self._mean.clone(), self._scatter / max(self._count - 1, 1), self._count)


def statistics(features: Tensor) -> Statistics:
    """Statistics of one set. (N, D), on the CPU."""
    running = RunningStatistics(features.shape[1])
    running.add(features)
    return running.result()


def require_two(real: Statistics, generated: Statistics) -> None:
    """Check that both sets have a covariance.

    Raises:
        ValueError: if a set has fewer than two members.
    """
    if min(real.num_samples, generated.num_samples) < 2:
        raise ValueError(
            f"a Frechet distance needs at least 2 images in both sets, got {real.num_samples} real "
            f"and {generated.num_samples} generated; draw more samples"
        )


def frechet_distance(real: Statistics, generated: Statistics) -> float:
    """The distance d^2, at least 0 up to rounding; NaN where features are.

    Raises:
        ValueError: if a set has fewer than two members.
    """
    require_two(real, generated)
    product = real.cov @ generated.cov
    if not bool(product.isfinite().all()):
        return float("nan")
    root = torch.linalg.eigvals(product).sqrt().real.sum()
    shift = (real.mean - generated.mean).square().sum()
    return float(shift + real.cov.trace() + generated.cov.trace() - 2.0 * root)
