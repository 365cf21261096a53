# SPDX-License-Identifier: Apache-2.0
"""Tangent methods that take a network that another one refuses: found by trying them.

Two samples of the batch go through a copy of the weights, with noise on it: a fresh network gives
zero, and so does its derivative, right or lost. A method counts as exact if it agrees with finite
differences, since forward mode loses the tangent in some operations without an error.
"""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from scm_lightning.autodiff.methods import (
    DualArithmetic,
    FiniteDifference,
    ForwardMode,
    Point,
    TangentMethod,
    TwoPasses,
    name_of,
    same_random_numbers,
)
from scm_lightning.core import Bound, at_least_float32

EXACT = (DualArithmetic(), TwoPasses(), ForwardMode())
"""Methods to try, the cheaper ones in memory first; checkpointing takes what dual numbers take."""
DIFFERENCES = FiniteDifference()
TOLERANCE = 0.1
"""Largest relative difference from finite differences, which are rough, under autocast."""


def advice(f: Bound, point: Point, refused: TangentMethod) -> str:
    """Say what to use in place of a method.

    Nothing is changed: weights, buffers, gradients and the state of the random numbers stay.

    Args:
        f: the network and its conditions.
        point: where the method refused it.
        refused: that method.

    Returns:
        A clause that names the methods that work, exact ones first; empty for a sharded network,
        whose processes would wait for each other.
    """
    network: Any = f.network
    if any(isinstance(part, FSDPModule) for part in network.modules()):
        return ""
    try:
        exact, is_differentiable = _working_methods(f, point, refused)
    except Exception:  # whatever a foreign network does, the refusal itself must be read
        exact, is_differentiable = [], False
    found = [f"{' and '.join(exact)} exactly"] if exact else []
    found += ["finite_difference to about 5e-3"] if is_differentiable else []
    if not found:
        return "; none of the other tangent methods takes this network"
    return f"; of the other tangent methods this network works with {', '.join(found)}"


def _working_methods(f: Bound, point: Point, refused: TangentMethod) -> tuple[list[str], bool]:
    """Methods that agree with finite differences, and whether those work."""
    with warnings.catch_warnings(), same_random_numbers(point.u):
        warnings.simplefilter("ignore")
        state = _noisy_state(f.network)
        f, point = f.first(2), point.first(2)
        wide = {k: at_least_float32(x) if x.is_floating_point() else x for k, x in state.items()}
        steps = (DIFFERENCES, FiniteDifference(DIFFERENCES.h / 2))
        expected, again = (_derivative(each, _with_state(f, wide), point) for each in steps)
        if not _agree(again, expected):  # a staircase, say
            return [], False
        others = [method for method in EXACT if type(method) is not type(refused)]
        found = {name_of(each): _derivative(each, _with_state(f, state), point) for each in others}
        working = [name for name, derivative in found.items() if _agree(derivative, expected)]
        return working, not isinstance(refused, FiniteDifference)


def _agree(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return False
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12)) < TOLERANCE


def _noisy_state(network: Any) -> dict[str, Tensor]:
    """Copies of buffers and, with noise on them, of weights."""
    state = {name: x.detach().clone() for name, x in network.named_buffers()}
    for name, x in network.named_parameters():
        noise = 0.02 * torch.randn_like(x) if x.is_floating_point() else 0
        state[name] = x.detach() + noise
    return state


def _with_state(f: Bound, state: dict[str, Tensor]) -> Bound:
    """The same function, with other weights and buffers in place of its own."""
    network: Any = f.network

    def call(*args: Any, **named: Any) -> Tensor:
        out: Tensor = torch.func.functional_call(network, state, args, named)
        return out

    return replace(f, network=call)


def _derivative(method: TangentMethod, f: Bound, point: Point) -> Tensor | None:
    """A method's derivative, float64 on the CPU; None if it refuses or fails."""
    try:
        with same_random_numbers(point.u):  # dropout is the same for all
            F, scaled_dF_dt = method(f, point)
    except Exception:  # of any kind: the method does not work
        return None
    is_good = scaled_dF_dt.shape == F.shape == point.u.shape
    is_good = is_good and bool(scaled_dF_dt.isfinite().all())
    return scaled_dF_dt.detach().cpu().double() if is_good else None
