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
FLOOR = 1e-3
"""Entries below this are compared absolutely: derivatives that cancel to 0 are left with 1e-16."""


@dataclass
class Verdict:
    """How one call went: exact, refused, wrong, raw (another error), uncompared, or unusable.

    `reference` is what the tangent agreed with: "jvp", "differences", or "" if nothing was there.
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


def compare_tangents(call: Call, wanted: Sequence[Tensor], allowed: float | None) -> float:
    """Worst error of the tangents of the floating outputs and Python numbers; a Mistake if any."""
    slots = [
        index
        for index, value in enumerate(call.values[: len(call.tangents)])
        if floating(value) or not isinstance(value, Tensor)
    ]
    worst = 0.0
    for index, theirs in zip(slots, wanted, strict=True):
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
        mistake: Mistake | None = None
        try:
            wanted = tangents_by_jvp(*self.given, chosen)
            errors["tangent"] = compare_tangents(call, wanted, None)
            return Verdict("exact", "", "jvp", errors)
        except Mistake as found:
            mistake = found
        except Exception as error:
            no_jvp = first_line(error)
        try:
            wanted = tangents_by_differences(*self.given, chosen)
        except Exception as error:
            if mistake is not None:
                raise mistake from error
            return Verdict("uncompared", f"{no_jvp}; {first_line(error)}", "", errors)
        try:
            errors["tangent"] = compare_tangents(call, wanted, OF_DIFFERENCES)
        except Mistake as found:
            raise (mistake or found) from None
        return Verdict("exact", str(mistake or no_jvp), "differences", errors)
