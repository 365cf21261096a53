# SPDX-License-Identifier: Apache-2.0
"""One call on dual numbers against torch's own: its value, its tangent and its gradients.

Value and gradients must be those of the plain call in reverse mode; the tangent that of
`torch.func.jvp`, or of central differences where that raises or differs (it has faults of its own,
such as NaN at the edge of a domain; the verdict says which of the two it was).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tangent_calls import (
    Build,
    Call,
    Mistake,
    call_on_duals,
    call_plainly,
    engine,
    floating,
    tangents_by_differences,
    tangents_by_jvp,
)
from torch import Tensor

RELATIVE = {64: 1e-9, 32: 2e-5, 16: 2e-2}
"""Largest error that is rounding, of the largest entry, by bits per real number. In float64 the
two sides may sum in another order, over at most 1e3 numbers of condition 1e3: 1e-16 to 1e-10."""
OF_DIFFERENCES = 1e-6
"""Largest error against differences: fifth derivatives reach 1e9 near the edges of a domain."""
AT_KINKS = 1e-2
"""Largest error against differences over a kink: those over two steps say how wrong they are."""
FLOOR = 1e-3
"""Entries below this are compared absolutely: derivatives that cancel to 0 are left with 1e-16."""


@dataclass
class Verdict:
    """How one call went: exact, refused, wrong, raw (another error), uncompared, or unusable.

    `reference` is what the tangent agreed with: "jvp", "differences", or "none" where no output
    can have one.
    """

    outcome: str
    detail: str = ""
    reference: str = ""
    errors: dict[str, float] = field(default_factory=dict)


def distance(ours: object, theirs: object) -> float:
    """Largest difference, of the largest entry; infinite for another shape, dtype or NaN."""
    if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
        same = type(ours) is type(theirs) and (ours == theirs or ours != ours)
        return 0.0 if same else float("inf")
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    if ours.dtype == torch.complex32:  # cannot be compared
        ours, theirs = ours.to(torch.complex64), theirs.to(torch.complex64)
    if ours.numel() == 0 or torch.equal(ours, theirs):
        return 0.0
    if not floating(ours):
        return float("inf")
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    error = torch.where(same, 0.0, (ours - theirs).abs()).nan_to_num(nan=float("inf")).max()
    size = torch.where(theirs.isfinite(), theirs, 0).abs().max().clamp(min=FLOOR)
    return float(error / size)


def limit(x: object) -> float:
    """The largest error that counts as rounding."""
    return RELATIVE[torch.finfo(x.dtype).bits] if floating(x) else 0.0


def slots(call: Call) -> list[int]:
    """Where outputs are that have a derivative: floating tensors, and Python numbers."""
    return [
        index
        for index, value in enumerate(call.values[: len(call.tangents)])
        if floating(value) or not isinstance(value, Tensor)
    ]


def compare_tangents(call: Call, wanted: Sequence[Tensor], allowed: float | None) -> float:
    """Worst error of the tangents of the floating outputs and Python numbers; a Mistake if any."""
    worst = 0.0
    for index, theirs in zip(slots(call), wanted, strict=True):
        ours = call.tangents[index]
        error = distance(torch.zeros_like(theirs) if ours is None else ours, theirs)
        if not error <= (allowed or limit(theirs)):
            kind = "tangent lost" if ours is None else "tangent"
            raise Mistake(f"{kind}: output {index}, relative error {error:.1e}")
        worst = max(worst, error)
    return worst


def compare_all(kind: str, ours: Sequence[object], theirs: Sequence[object]) -> float:
    """Worst error of values or gradients; a Mistake for one that is missing, added or wrong."""
    if len(ours) != len(theirs):
        raise Mistake(f"{kind}: {len(ours)} instead of {len(theirs)}")
    worst = 0.0
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one is None and other is None:
            continue
        if one is None or other is None:
            raise Mistake(f"{kind} {'lost' if one is None else 'added'}: number {index}")
        error = distance(one, other)
        if not error <= limit(other):
            raise Mistake(f"{kind}: number {index}, relative error {error:.1e}")
        worst = max(worst, error)
    return worst


def first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return lines[0][:160]


class Judge:
    """One function at one point: the plain call is made once, for any choice of dual leaves."""

    def __init__(self, build: Build, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> None:
        self.given = build, primals, tangents
        self.plain = call_plainly(build, primals)  # raises if torch itself cannot

    def __call__(self, chosen: Sequence[bool]) -> Verdict:
        try:
            call = call_on_duals(*self.given, chosen)
            return self.compare(call, chosen)
        except Mistake as mistake:
            return Verdict("wrong", str(mistake))
        except engine().TangentError as error:
            return Verdict("refused", first_line(error))
        except Exception as error:
            return Verdict("raw", f"{type(error).__name__}: {first_line(error)}")

    def compare(self, call: Call, chosen: Sequence[bool]) -> Verdict:
        errors = {"value": compare_all("value", call.values, self.plain.values)}
        if self.plain.gradients is not None:
            if call.gradients is None:
                raise Mistake("gradient: the backward pass raises")
            errors["gradient"] = compare_all("gradient", call.gradients, self.plain.gradients)
        if not slots(call):
            return Verdict("exact", "", "none", errors)
        by_jvp, said = None, ""
        try:
            by_jvp = tangents_by_jvp(*self.given, chosen)
            errors["tangent"] = compare_tangents(call, by_jvp, None)
            return Verdict("exact", "", "jvp", errors)
        except Exception as error:  # a Mistake, or torch has no forward derivative of this call
            said = first_line(error)
        try:
            slopes, doubt = tangents_by_differences(*self.given, chosen)
        except Exception as error:  # nor has it a neighbourhood
            if by_jvp is not None:
                raise Mistake(said) from error
            return Verdict("uncompared", f"{said}; {first_line(error)}", "", errors)
        if by_jvp is not None and agree(by_jvp, slopes):
            raise Mistake(said)  # differences are too coarse to excuse it
        allowed = max(OF_DIFFERENCES, min(2 * doubt, AT_KINKS))
        errors["tangent"] = compare_tangents(call, slopes, allowed)
        return Verdict("exact", said, "differences", errors)


def agree(by_jvp: Sequence[Tensor], slopes: Sequence[Tensor]) -> bool:
    """Whether torch's forward derivative is one, as far as differences can tell."""
    return all(
        distance(one, other) <= OF_DIFFERENCES for one, other in zip(by_jvp, slopes, strict=True)
    )
