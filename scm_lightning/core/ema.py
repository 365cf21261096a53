# SPDX-License-Identifier: Apache-2.0
r"""Decay factors of exponential moving averages of the weights.

    half-life:       beta = 0.5^(images per step / half-life)
    power function:  beta = (1 - 1 / step)^(gamma + 1)

The power function's profile is a fixed share of the run, however long it is: its relative width is
sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).
Source: Karras et al., EDM (arXiv 2206.00364) for the half-life, EDM2 (arXiv 2312.02696, Section 3)
for the power function; both used by arXiv 2410.11081, Section 5.
"""

from functools import cache

import numpy as np


def half_life_decay(
    images_per_step: int, half_life: float, images_seen: int, ramp_up: float | None = 0.05
) -> float:
    """Decay of one step for an average with a half-life counted in images.

    Args:
        images_per_step: images in this optimizer step, over all processes.
        half_life: images after which a weight counts half.
        images_seen: images before this step.
        ramp_up: the half-life is at most this share of the images seen, so that the average forgets
            the random start; None switches this off.

    Returns:
        beta in [0, 1): average <- beta average + (1 - beta) weights.

    Raises:
        ValueError: if the half-life is not positive.

    Source: EDM's training loop; ramp_up = 0.05 there.
    """
    if half_life <= 0:
        raise ValueError(f"EMA half-life must be a positive number of images, got {half_life}")
    if ramp_up is not None:
        half_life = min(half_life, ramp_up * images_seen)
    return float(0.5 ** (images_per_step / max(half_life, 1e-8)))


def power_function_decay(step: int, gamma: float) -> float:
    """Decay of one step for a power-function average.

    Args:
        step: number of this optimizer step, the first being 1.
        gamma: exponent of the profile; see `gamma_from_sigma_rel`.

    Returns:
        beta in [0, 1): average <- beta average + (1 - beta) weights.

    Raises:
        ValueError: if `step` is below 1.

    Source: EDM2, Section 3.1.
    """
    if step < 1:
        raise ValueError(f"optimizer steps of an EMA count from 1, got {step}")
    return float((1.0 - 1.0 / step) ** (gamma + 1.0))


@cache  # asked for at every optimizer step
def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Exponent of the power-function profile of relative width `sigma_rel`.

    Solves (gamma + 2)^2 (gamma + 3) sigma_rel^2 = gamma + 1 for the largest real root; for example
    sigma_rel = 0.05 gives 16.97.

    Args:
        sigma_rel: width of the profile as a share of the run, in (0, 0.288).

    Raises:
        ValueError: if no average is that wide: gamma >= 0 means sigma_rel <= sqrt(1/12).

    Source: EDM2, Section 3.1 and Appendix C.
    """
    if not 0.0 < sigma_rel <= 12**-0.5:
        raise ValueError(
            f"EMA sigma_rel must be in (0, {12**-0.5:.4f}], got {sigma_rel}; the paper uses 0.05"
        )
    # (gamma + 2)^2 (gamma + 3) - (gamma + 1) / sigma_rel^2 = 0, expanded.
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))
