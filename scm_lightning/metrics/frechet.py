# SPDX-License-Identifier: Apache-2.0
"""Frechet distance of Gaussians fitted to two sets of feature vectors, in float64.

    d^2 = |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2))

m, C: mean and covariance (divided by count - 1) of a set. The trace of the root is the sum of the
roots of the eigenvalues of C' C, which are real and at least 0 up to rounding. The root magnifies
that rounding where a covariance is singular; NumPy's eigenvalues, and C' of the generated set to
the left, make it torch-fidelity's. Only the means are in float64 here and in float32 there.

Batches, and what several processes have, are merged without squares being summed far from the mean
(Chan, Golub, LeVeque: "Updating Formulae and a Pairwise Algorithm", 1979). Sums of squares about
zero would lose as many digits as the square of mean over deviation has.

Source: Heusel et al., arXiv 1706.08500, equation 6.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
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


def moments(features: Tensor) -> Tensor:
    """Scatter, mean and count of a set in one tensor, the state of a metric.

    Args:
        features: (N, D); N may be 0.

    Returns:
        Rows of the scatter, then the mean, then the count D times. (D + 2, D), float64.
    """
    x = features.double()
    mean = x.sum(0) / max(len(x), 1)
    centred = x - mean
    return torch.cat([centred.T @ centred, mean[None], torch.full_like(mean[None], len(x))])


def merged(parts: Sequence[Tensor] | Tensor) -> Tensor:
    """Moments of several sets together. (D + 2, D) each."""
    whole = parts[0]
    for part in parts[1:]:
        shift, before, fresh = part[-2] - whole[-2], whole[-1:, 0], part[-1:, 0]
        count = (before + fresh).clamp(min=1.0)
        between = torch.outer(shift, shift) * (before * fresh / count)
        scatter = whole[:-2] + part[:-2] + between
        mean = whole[-2] + shift * (fresh / count)
        whole = torch.cat([scatter, mean[None], whole[-1:] + part[-1:]])
    return whole


def statistics_of(moments: Tensor) -> Statistics:
    """Statistics of the set that has these moments, on the CPU. (D + 2, D)."""
    scatter, mean, count = moments[:-2].cpu(), moments[-2].cpu(), int(moments[-1, 0])
    return Statistics(mean, scatter / max(count - 1, 1), count)


def statistics(features: Tensor) -> Statistics:
    """Statistics of one set. (N, D)."""
    return statistics_of(moments(features))


def require(least: int, of_what: str, **counts: int) -> None:
    """Check that sets are large enough.

    Args:
        least: images that each must have.
        of_what: what is measured of them.
        counts: images in each, by its name.

    Raises:
        ValueError: if one has fewer.
    """
    if min(counts.values()) < least:
        got = " and ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(
            f"{of_what} needs at least {least} images in a set, got {got}; draw more samples"
        )


def frechet_distance(real: Statistics, generated: Statistics) -> float:
    """The distance d^2, at least 0 up to rounding; NaN where features are.

    Raises:
        ValueError: if a set has fewer than two members.
    """
    require(2, "a Frechet distance", real=real.num_samples, generated=generated.num_samples)
    shift = (generated.mean - real.mean).numpy()
    covs = generated.cov.numpy(), real.cov.numpy()
    product = covs[0] @ covs[1]
    if not np.isfinite(product).all():
        return float("nan")
    roots = np.sqrt(np.linalg.eigvals(product).astype(complex)).real
    return float(shift @ shift + covs[0].trace() + covs[1].trace() - 2.0 * roots.sum())
