# SPDX-License-Identifier: Apache-2.0
r"""Any power-function average of the weights, from snapshots of a few that were tracked.

After t images, a power-function average is the integral of the weights, constant within a step,
against

    p_{t,gamma}(s) = (gamma + 1) s^gamma / t^(gamma + 1)      for 0 <= s <= t, and 0 after t.

This is exact, not a limit, whatever the batches: over a step from a to b images the profile
integrates to (b^(gamma+1) - a^(gamma+1)) / t^(gamma+1), which is the factor that decays of
(a / b)^(gamma+1) leave to its weights. In another unit than images, t is scaled, and the result is
the same. So a sum of averages is the average by the sum of their profiles, and to reconstruct a
profile p* that nobody tracked is to find the nearest sum of profiles p_i that were:

    minimize || sum_i c_i p_i - p* ||^2   over c with sum_i c_i = 1,
    || p ||^2 = <p, p>,    <p_a, p_b> = integral of p_a(s) p_b(s) ds.

With m = min(t_a, t_b), M = max(t_a, t_b) and gamma_M the exponent of the profile that ends at M,

    <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1)
                 m^(gamma_a + gamma_b + 1) / (t_a^(gamma_a + 1) t_b^(gamma_b + 1))
               = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (m / M)^gamma_M / M,

whose second form has no power that over- or underflows before the result does.

The condition sum c = 1 is (ours): constant weights are then reproduced whatever the snapshots. On
random walks it makes the error up to four times smaller where snapshots are few (4 of each of two
widths), and changes nothing where they are dense.
Source: Karras et al., EDM2 (arXiv 2312.02696), Section 3.2 and Appendix C.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def profile_inner_products(
    ends_a: Sequence[float],
    gammas_a: Sequence[float],
    ends_b: Sequence[float],
    gammas_b: Sequence[float],
) -> Array:
    """Inner products of power-function profiles, each of `a` with each of `b`.

    Args:
        ends_a: where the profiles end, t. (A,), images.
        gammas_a: their exponents. (A,).
        ends_b: the same of the other profiles. (B,), images.
        gammas_b: the same of the other profiles. (B,).

    Returns:
        Integrals of the products over all images. (A, B), float64, per image.

    Raises:
        ValueError: if an end is not positive or an exponent negative.

    Source: the formula at the head of this file; EDM2, Appendix C.
    """
    t_a, gamma_a = _profiles(ends_a, gammas_a)
    t_b, gamma_b = _profiles(ends_b, gammas_b)
    t_a, gamma_a, t_b, gamma_b = t_a[:, None], gamma_a[:, None], t_b[None], gamma_b[None]
    m, M = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma_M = np.where(t_a >= t_b, gamma_a, gamma_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    products: Array = scale * (m / M) ** gamma_M / M
    return products


def post_hoc_coefficients(
    ends: Sequence[float], gammas: Sequence[float], target_end: float, target_gamma: float
) -> Array:
    """Coefficients with which snapshots of averages add up to another average.

    Args:
        ends: where the snapshots were taken. (N,), images.
        gammas: exponents of those averages. (N,).
        target_end: where the other average ends. Images.
        target_gamma: its exponent; see `gamma_from_sigma_rel`.

    Returns:
        c: the average is close to sum_i c_i snapshot_i; `post_hoc_residual` tells how close. (N,),
        float64, of sum 1. Negative coefficients are normal.

    Raises:
        ValueError: if there are no snapshots, an end is not positive or an exponent negative.

    Source: EDM2, Section 3.2 and Appendix C; the condition on the sum is (ours).
    """
    products, with_target, norm = _system(ends, gammas, [target_end], [target_gamma])
    # Everything in units of the norms, which spread over orders of magnitude: 1 on the diagonal.
    norms = np.sqrt(np.diag(products))
    matrix = products / np.outer(norms, norms)
    ones = norm / norms
    # Stationarity of the Lagrange function, and the condition. Singular if a snapshot is there
    # twice, hence least squares: the smallest solution.
    system = np.block([[matrix, ones[:, None]], [ones[None], np.zeros((1, 1))]])
    right = np.append(with_target / (norms * norm), 1.0)
    scaled = np.linalg.lstsq(system, right, rcond=None)[0][:-1]
    coefficients: Array = scaled * ones
    return coefficients


def post_hoc_residual(
    coefficients: Sequence[float] | Array,
    ends: Sequence[float],
    gammas: Sequence[float],
    target_end: float,
    target_gamma: float,
) -> float:
    """Distance of the reconstructed profile from the target, relative to the target's norm.

    It is the relative error of the average where weights are white noise around 0; weights that
    move slowly have a smaller one.

    Args:
        coefficients: from `post_hoc_coefficients`. (N,).
        ends: as there.
        gammas: as there.
        target_end: as there.
        target_gamma: as there.

    Returns:
        || sum_i c_i p_i - p* || / || p* ||: 0 if the snapshots span the target; below 1e-7 it is
        rounding.

    Raises:
        ValueError: see `post_hoc_coefficients`.

    Source: the formula at the head of this file.
    """
    products, with_target, norm = _system(ends, gammas, [target_end], [target_gamma])
    c = np.asarray(coefficients, dtype=np.float64)
    square = float(c @ products @ c - 2 * c @ with_target) + norm**2
    return float(max(square, 0.0) ** 0.5 / norm)


def _system(
    ends: Sequence[float],
    gammas: Sequence[float],
    target_end: Sequence[float],
    target_gamma: Sequence[float],
) -> tuple[Array, Array, float]:
    """Products of the snapshots (N, N), those with the target (N,), and the target's norm."""
    if not len(ends):
        raise ValueError("a reconstruction needs at least one snapshot, got none")
    products = profile_inner_products(ends, gammas, ends, gammas)
    with_target = profile_inner_products(ends, gammas, target_end, target_gamma)[:, 0]
    square = profile_inner_products(target_end, target_gamma, target_end, target_gamma)
    return products, with_target, float(np.sqrt(square[0, 0]))


def _profiles(ends: Sequence[float], gammas: Sequence[float]) -> tuple[Array, Array]:
    """Ends and exponents as arrays, refused unless they are profiles."""
    t, gamma = np.asarray(ends, dtype=np.float64), np.asarray(gammas, dtype=np.float64)
    if t.shape != gamma.shape or not (np.all(t > 0) and np.all(gamma >= 0)):
        raise ValueError(
            "profiles need as many positive ends as exponents of at least 0, got ends "
            f"{t.tolist()} and exponents {gamma.tolist()}"
        )
    return t, gamma
