# SPDX-License-Identifier: Apache-2.0
r"""Decay factors of exponential moving averages of the weights.

    half-life:       beta = 0.5^(images in this step / half-life)
    power function:  beta = (1 - images in this step / images after it)^(gamma + 1)

Both count images, so that a change of the batch size changes no profile. While it does not change,
the second is (1 - 1 / step)^(gamma + 1). The power function's profile is a fixed share of the run,
however long it is: its relative width is
sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).
Source: Karras et al., EDM (arXiv 2206.00364) for the half-life, EDM2 (arXiv 2312.02696, Section 3)
for the power function; both used by arXiv 2410.11081, Section 5.
"""

from functools import cache

import numpy as np


def half_life_decay(
    images_in_step: int, half_life: float, images_seen: int, ramp_up: float | None = 0.05
) -> float:
    """Decay of one step for an average with a half-life counted in images.

    Args:
        images_in_step: images in this optimizer step, over all processes.
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
    return float(0.5 ** (images_in_step / max(half_life, 1e-8)))


def power_function_decay(images_in_step: int, images_seen: int, gamma: float) -> float:
    """Decay of one step for a power-function average.

    Args:
        images_in_step: images in this optimizer step, over all processes.
        images_seen: images before this step.
        gamma: exponent of the profile; see `gamma_from_sigma_rel`.

    Returns:
        beta in [0, 1): average <- beta average + (1 - beta) weights.

    Raises:
        ValueError: if there is no image in the step, or a negative number before it.

    Source: EDM2, Section 3.1; in images as in its training loop.
    """
    if images_in_step < 1 or images_seen < 0:
        raise ValueError(
            f"an EMA counts at least 1 image in a step, and 0 before it, got {images_in_step} and "
            f"{images_seen}"
        )
    return float((1.0 - images_in_step / (images_seen + images_in_step)) ** (gamma + 1.0))


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
