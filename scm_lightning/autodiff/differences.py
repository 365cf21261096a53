# SPDX-License-Identifier: Apache-2.0
r"""Derivatives of all modules by central differences, which decide where forward mode cannot.

    D_h = (x(+h) - x(-h)) / 2h,        D = (4 D_{h/2} - D_h) / 3

along the tangents of u and t, wherever D_h and D_{h/2} agree.
"""

import torch

from scm_lightning.autodiff.methods import Point
from scm_lightning.autodiff.readings import (
    Reading,
    Readings,
    Untouched,
    plain,
    read_again,
    read_whole,
)
from scm_lightning.core import Bound

STEP = 1e-4
"""Step h of the differences. Of frequencies up to 1000, the extrapolated error is h^4 w^4 / 480."""
AGREE = 1e-2
"""Relative difference of the two steps' derivatives, above which neither is believed."""


def by_differences(f: Bound, point: Point, state: Untouched) -> Readings:
    """Derivatives by central differences, extrapolated, where two steps agree."""

    def at(h: float) -> Readings:
        tu, tt = point.input_tangents()
        with torch.no_grad(), read_again(plain, state) as readings:
            read_whole(f, plain, readings)(point.u + h * tu, point.t + h * tt)
        return readings

    after, before, after_half, before_half = map(at, (STEP, -STEP, STEP / 2, -STEP / 2))
    found = {}
    for place, (value, _) in after.items():
        whole = (value - before[place].value) / (2 * STEP)
        half = (after_half[place].value - before_half[place].value) / STEP
        if float((whole - half).norm()) <= AGREE * float(half.norm()):
            found[place] = Reading(value, (4 * half - whole) / 3)
    return found
