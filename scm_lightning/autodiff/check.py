# SPDX-License-Identifier: Apache-2.0
r"""Check of a tangent method on a network, before the first step of a run.

Four samples of the first batch go through the network, in train mode and at the run's precision.

    outputs      of every module, by the method and by an ordinary forward
    gradients    of every parameter, likewise
    derivatives  of every module, by the method and by `torch.func.jvp`. Where that raises, or
                 differs, central differences decide, in float64 on both sides, at two steps h and
                 h / 2 and extrapolated from them, wherever the two agree

The first module that differs is named, and the run refused.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from scm_lightning.autodiff.advice import advice
from scm_lightning.autodiff.comparison import (
    Gradients,
    derivatives,
    difference_in_gradients,
    first_difference,
    values,
)
from scm_lightning.autodiff.differences import by_differences
from scm_lightning.autodiff.methods import (
    DualArithmetic,
    FiniteDifference,
    ForwardMode,
    Point,
    TangentMethod,
    TwoPasses,
    name_of,
    widened,
)
from scm_lightning.autodiff.readings import (
    Place,
    Reading,
    Readings,
    Untouched,
    of_dual_number,
    of_forward_mode,
    place_of,
    plain,
    read_again,
    read_whole,
    untouched,
)
from scm_lightning.autodiff.repaired_jvp import jvp
from scm_lightning.core import Bound, widest_float

log = logging.getLogger(__name__)
T = TypeVar("T")

SAMPLES, FEW = 4, 2
"""Samples of the batch that are checked; fewer of them in float64."""
LIMIT, HALF_LIMIT, ROUGH_LIMIT = 1e-3, 5e-2, 2e-2
"""Largest relative difference: in float32; in half precision; of finite differences as a method."""
LOST = 0.5
"""Relative difference that no rounding explains; below it, float64 says whose rounding is worse."""
WORSE = 3.0
"""Multiple of torch's own rounding error in half precision that is too much."""
STILL = 1e-3
"""Factors of the derivative below which it is looked at without."""


@dataclass
class Pass:
    """Result of one pass through the network.

    Attributes:
        readings: outputs of the modules.
        gradients: those of the parameters, by name; empty where not requested.
    """

    readings: Readings
    gradients: Gradients


def check_tangents(method: TangentMethod, f: Bound, point: Point) -> None:
    """Refuse a method whose value, gradients or derivative on a network are not right.

    Weights, buffers, gradients and random numbers are left unchanged.

    Args:
        method: the tangent method.
        f: the network, in train mode, and its conditions.
        point: where the run takes its first derivative; under the run's autocast.

    Raises:
        ValueError: if they are not right; names the first module that differs, and methods that
            agree.
    """
    network: Any = f.network
    # A flow map from t to t has scale 0, and would say nothing.
    still = point.scale.abs() < STILL
    point = point._replace(scale=point.scale.masked_fill(still, 1.0))
    few, at = f.first(SAMPLES), point.first(SAMPLES)
    with untouched(network) as state:
        if not _takes(few, at, state):  # a network that takes the whole batch, or none
            few, at = f, point
        expected = _by_plain_forward(few, at, state)
        if expected is None:  # no output of its input's shape, of which the computer speaks
            return
        ours = _by_method(method, few, at, state, with_gradients=True)
        fault = _difference_from_plain(ours, expected, _limit(few, at))
        if fault is None:
            fault = _difference_in_derivative(method, ours, few, at, state)
    if fault is not None:
        raise ValueError(f"{fault}{advice(f, point, method)}")


def _difference_from_plain(ours: Pass, expected: Pass, limit: float) -> str | None:
    """Compare outputs and gradients with those of an ordinary forward."""
    first = first_difference(values, ours.readings, expected.readings, limit)
    if first is not None:
        return (
            f"the tangent method changes what the network computes: the output of {first[0]} "
            f"differs by {first[1]:.2g} from an ordinary forward, limit {limit:g}"
        )
    return difference_in_gradients(ours.gradients, expected.gradients, 10 * limit)


def _difference_in_derivative(
    method: TangentMethod, ours: Pass, f: Bound, point: Point, state: Untouched
) -> str | None:
    """Compare derivatives with torch's forward mode; if they differ, differences decide."""
    limit = ROUGH_LIMIT if isinstance(method, FiniteDifference) else _limit(f, point)
    is_torchs = isinstance(method, (ForwardMode, TwoPasses))
    expected = None if is_torchs else _by_forward_mode(f, point, state)
    if expected is not None and first_difference(values, ours.readings, expected, limit):
        expected = None  # it draws another dropout mask, say
    first = None
    if expected is not None:
        first = first_difference(derivatives, ours.readings, expected, limit)
        if first is None:
            return None
    if state.sharded and first is not None:  # what follows, all processes must do
        return f"the derivative of {first[0]} differs by {first[1]:.2g} from torch.func.jvp"
    fault = _difference_from_differences(method, f, point, state)
    rounds = limit == HALF_LIMIT  # else forward mode is wrong, in a custom operation say
    if fault is not None or first is None or not rounds:
        return fault
    assert expected is not None
    place, error = first
    theirs = expected[place]
    if error > LOST or _rounds_worse(method, place, ours.readings[place], theirs, f, point, state):
        return (
            f"in this precision the derivative of {place} by the tangent method {name_of(method)} "
            f"differs by {error:.2g} from torch.func.jvp, limit {limit:g}"
        )
    return None


def _rounds_worse(
    method: TangentMethod,
    place: Place,
    ours: Reading,
    theirs: Reading,
    f: Bound,
    point: Point,
    state: Untouched,
) -> bool:
    """Tell whether a half-precision derivative is further from float64's than torch's is."""
    with widened(state.network, point.u.device.type, torch.float64):
        wide, at = f.in_type(torch.float64), point.in_type(torch.float64)
        exact = _by_method(method, wide, at, state).readings.get(place)
    if exact is None or exact.tangent is None or ours.tangent is None or theirs.tangent is None:
        return False
    if exact.tangent.shape != ours.tangent.shape:
        return False
    truth = exact.tangent
    error, usual = (float((x.to(truth) - truth).norm()) for x in (ours.tangent, theirs.tangent))
    return error > max(WORSE * usual, 2 * HALF_LIMIT * float(truth.norm()))


def _difference_from_differences(
    method: TangentMethod, f: Bound, point: Point, state: Untouched
) -> str | None:
    """Compare derivatives with central differences, both in float64; sharded, in float32."""
    limit = ROUGH_LIMIT if isinstance(method, FiniteDifference) or state.sharded else LIMIT
    if not state.sharded and widest_float(point.u.device) != torch.float64:
        log.warning("the derivative could not be checked: %s has no float64", point.u.device)
        return None
    if len(point.t) <= SAMPLES:  # else a network that takes the whole batch
        f, point = f.first(FEW), point.first(FEW)
    dtype = torch.float32 if state.sharded else torch.float64
    with widened(None if state.sharded else state.network, point.u.device.type, dtype):
        wide, at = f.in_type(dtype), point.in_type(dtype)
        expected = _tried(lambda: by_differences(wide, at, state))
        if isinstance(expected, Exception):  # of a network that takes no float64
            log.warning("the derivative could not be checked: in %s it fails: %s", dtype, expected)
            return None
        ours = _by_method(method, wide, at, state)
    if place_of(state.network) not in expected:
        reason = "its output is not smooth along the path: differences at two steps do not agree"
        if isinstance(method, FiniteDifference):
            return f"the derivative of the network cannot be taken by differences: {reason}"
        log.warning("the derivative of the whole network could not be checked: %s", reason)
    first = first_difference(derivatives, ours.readings, expected, limit)
    if first is None:
        return None
    place, error = first
    precision = str(dtype).removeprefix("torch.")
    return (
        f"the derivative of {place} by the tangent method {name_of(method)} differs by "
        f"{error:.2g} from central differences in {precision}, limit {limit:g}"
    )


def _takes(f: Bound, point: Point, state: Untouched) -> bool:
    """Tell whether the network runs on these samples."""
    state.again()
    with torch.no_grad():
        return not isinstance(_tried(lambda: f(point.u, point.t)), Exception)


def _tried(run: Callable[[], T]) -> T | Exception:
    """Return what a function returns or raises; a lack of memory is raised."""
    try:
        return run()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any kind: an operation, a custom Function, the network's own
        return error


def _by_plain_forward(f: Bound, point: Point, state: Untouched) -> Pass | None:
    """An ordinary forward and backward pass; None if the output is not one.

    Raises:
        ValueError: if the backward pass fails.
    """
    with read_again(plain, state) as readings:
        out = read_whole(f, plain, readings)(point.u, point.t)
    if not isinstance(out, Tensor) or out.shape != point.u.shape:
        return None
    try:
        return Pass(readings, gradients_of(f.network, out))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the network cannot be trained: even without tangents, its backward pass fails with "
            f"{reason}"
        ) from error


def _by_method(
    method: TangentMethod, f: Bound, point: Point, state: Untouched, with_gradients: bool = False
) -> Pass:
    """A pass by a tangent method; of methods other than dual numbers, the last output alone."""
    with read_again(of_dual_number, state) as readings:
        F, scaled_dF_dt = method(f, point)
    if not isinstance(method, DualArithmetic):
        readings.clear()
    readings.setdefault(place_of(f.network), Reading(F.detach(), scaled_dF_dt.detach()))
    return Pass(readings, gradients_of(f.network, F) if with_gradients else {})


def _by_forward_mode(f: Bound, point: Point, state: Untouched) -> Readings | None:
    """A pass by `torch.func.jvp`; None if it raises."""
    with torch.no_grad(), read_again(of_forward_mode, state) as readings:
        whole = read_whole(f, of_forward_mode, readings)
        found = _tried(lambda: jvp(whole, (point.u, point.t), point.input_tangents()))
    return None if isinstance(found, Exception) else readings


def gradients_of(network: Any, out: Tensor) -> Gradients:
    """Gradients of a fixed random sum of the output; of a sharded network none."""
    if not out.requires_grad:  # sharded
        return {}
    parameters = {name: x for name, x in network.named_parameters() if x.requires_grad}
    for x in parameters.values():
        x.grad = None
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(out.shape, generator=generator).to(out)
    (out * weights).sum().backward()  # type: ignore[no-untyped-call]
    return {name: x.grad for name, x in parameters.items()}


def _limit(f: Bound, point: Point) -> float:
    network: Any = f.network
    half = any(x.dtype in (torch.float16, torch.bfloat16) for x in network.parameters())
    return HALF_LIMIT if half or torch.is_autocast_enabled(point.u.device.type) else LIMIT
