# SPDX-License-Identifier: Apache-2.0
"""Comparison of two passes through a network: outputs, derivatives, gradients.

Relative differences are L2, of the reading itself, or of a thousandth of the largest among all
modules where that is more.
"""

from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from scm_lightning.autodiff.readings import Place, Readings

FLOOR = 1e-3
"""Share of the largest reading below which differences are not relative to the reading."""

PLAIN, PLAIN_LIMIT = 0.05, 0.2
"""Share of the largest gradient above which one may differ by this much at most; healthy ones in
half precision were found to differ by 0.04."""

Gradients = dict[str, Tensor | None]


def first_difference(
    what: Callable[[Readings], dict[Place, Tensor | None]],
    ours: Readings,
    expected: Readings,
    limit: float,
) -> tuple[Place, float] | None:
    """The first place where values, or derivatives, differ, and by how much."""
    pairs = _differences(what(ours), what(expected))
    return next(((place, error) for place, error in pairs if not error <= limit), None)


def _differences(
    ours: dict[Place, Tensor | None], expected: dict[Place, Tensor | None]
) -> Iterator[tuple[Place, float]]:
    """Relative differences, in the order in which the modules were called."""
    sizes = [size for x in expected.values() if x is not None and isfinite(size := _rms(x))]
    floor = FLOOR * max(sizes, default=0.0)
    for place, found in ours.items():
        wanted = expected.get(place, _MISSING)
        if wanted is _MISSING or (found is None and wanted is None):
            continue
        one = torch.zeros_like(wanted) if found is None else found
        other = torch.zeros_like(one) if wanted is None else wanted
        if one.shape != other.shape:
            yield place, float("inf")
            continue
        if not other.isfinite().all():  # the guard of bad numbers speaks of them
            continue
        scale = max(_rms(other), floor)
        yield place, _rms(one.to(other.dtype) - other) / scale if scale > 0 else _rms(one)


_MISSING: Any = object()


def _rms(x: Tensor) -> float:
    wide = x.to(torch.complex64 if x.is_complex() else torch.float32) if x.itemsize < 4 else x
    return float(wide.norm() / max(x.numel(), 1) ** 0.5)


def values(readings: Readings) -> dict[Place, Tensor | None]:
    """Outputs of the modules."""
    return {place: reading.value for place, reading in readings.items()}


def derivatives(readings: Readings) -> dict[Place, Tensor | None]:
    """Derivatives of the modules' outputs."""
    return {place: reading.tangent for place, reading in readings.items()}


def difference_in_gradients(ours: Gradients, expected: Gradients, limit: float) -> str | None:
    """Compare the gradients of the parameters; those that are nearly zero are left out."""
    sizes = {name: 0.0 if x is None else float(x.norm()) for name, x in expected.items()}
    largest = max(sizes.values(), default=0.0)
    floor = FLOOR * largest
    reached = [name for name, size in sizes.items() if size > floor]
    worst, share, most = "", 1.0, limit
    for name in reached:
        found, wanted = ours.get(name), expected[name]
        if found is None:
            return f"the parameter {name} gets no gradient by this tangent method, only by a loss"
        assert wanted is not None
        allowed = min(limit, PLAIN_LIMIT) if sizes[name] >= PLAIN * largest else limit
        error = float((found - wanted).norm()) / sizes[name]
        if not error / allowed <= share:
            worst, share, most = name, error / allowed, allowed
    if not worst:
        return None
    return (
        f"the gradient of the parameter {worst} differs by {share * most:.2g} from that of an "
        f"ordinary forward, limit {most:g}"
    )
