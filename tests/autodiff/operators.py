# SPDX-License-Identifier: Apache-2.0
"""Run every operator of torch's own list on dual numbers and write down what came out.

python tests/autodiff/operators.py --table tests/autodiff/OPERATORS.md
python tests/autodiff/operators.py --only "^nn.functional.pad" --json results.json
"""

import argparse
import json
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from operator_cases import (
    CAP,
    DTYPES,
    FEW,
    Sample,
    Way,
    all_operators,
    full_name,
    samples,
    thinned,
    ways,
)
from tangent_calls import engine
from tangent_check import Judge, Verdict, first_line
from torch import Tensor

UNDEFINED_VALUES = "values are undefined (uninitialized memory): only that the call passes"
CHOSEN_SAMPLES = 3
"""Samples of an operator of each rule in the quick suite, where others have one in float64."""


@dataclass
class Result:
    """What one spelling of an operator gave in one dtype: calls counted by outcome."""

    op: str
    dtype: str
    way: str
    samples: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    references: Counter[str] = field(default_factory=Counter)
    details: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=dict)

    def add(self, verdict: Verdict) -> None:
        self.outcomes[verdict.outcome] += 1
        self.references[verdict.reference] += bool(verdict.reference)
        if verdict.detail:
            self.details[f"{verdict.outcome}: {verdict.detail}"] += 1
        for kind, error in verdict.errors.items():
            self.worst[kind] = max(error, self.worst.get(kind, 0.0))

    @property
    def failed(self) -> bool:
        return bool(self.outcomes["wrong"] or self.outcomes["raw"])


def choices(count: int) -> Iterator[list[bool]]:
    """Which leaves are dual: all; then the first alone and the others alone.

    A wrong rule for one argument may hide behind another's tangent.
    """
    yield [True] * count
    if count > 1:
        yield [True] + [False] * (count - 1)
        yield [False] + [True] * (count - 1)


def directions(leaves: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(leaves))
    return [torch.randn(leaf.shape, dtype=leaf.dtype, generator=generator) for leaf in leaves]


def run_way(op: Any, dtype: torch.dtype, way: Way, given: Sequence[Sample]) -> Result:
    result = Result(full_name(op), str(dtype).removeprefix("torch."), way.name)
    for sample in given:
        function = sample.bound(way.call)
        try:
            judge = Judge(lambda f=function: (f, ()), sample.leaves, directions(sample.leaves))
        except Exception as error:
            result.add(Verdict("unusable", first_line(error)))
            continue
        result.samples += 1
        for chosen in choices(len(sample.leaves)):
            verdict = judge(chosen)
            if op.has_nondeterministic_output and verdict.outcome == "wrong":
                verdict = Verdict("uncompared", UNDEFINED_VALUES)
            result.add(verdict)
    return result


def run_operator(
    op: Any, most: int = CAP, dtypes: Sequence[torch.dtype] = DTYPES
) -> Iterator[Result]:
    """Every spelling in every dtype that torch supports for it on a CPU.

    At one sample, those that differ in spelling only are left out.
    """
    for dtype in dtypes:
        if dtype not in op.supported_dtypes("cpu"):
            continue
        given = list(samples(op, dtype, most))
        for way in ways(op):
            if most == 1 and way.most == FEW:
                continue
            result = run_way(op, dtype, way, thinned(given, min(way.most, most)))
            if result.samples:
                yield result


def one_of_each_rule() -> list[Any]:
    """The first operator of the list for each rule that the engine has, and one without."""
    rules = getattr(engine(), "RULES", {})
    chosen = {}
    for op in all_operators():
        found = rules.get(op.op) or rules.get(op.method_variant)
        chosen.setdefault(found and found.rule, op)
    return list(chosen.values())


def count(results: Sequence[Result]) -> Counter[str]:
    """Calls by outcome; `differences` is a part of `exact`, `unusable` ones are torch's own."""
    total: Counter[str] = Counter()
    for result in results:
        total += result.outcomes
        total["differences"] += result.references["differences"]
    del total["unusable"]
    return +total


def summary(results: Sequence[Result]) -> str:
    total = count(results)
    groups = by_operator(results)
    clean = sum(not set(count(group)) - {"exact", "differences"} for group in groups.values())
    worst = {
        kind: max(result.worst.get(kind, 0.0) for result in results)
        for kind in ("value", "tangent", "gradient")
    }
    return (
        f"{len(groups)} operators in {len(results)} spellings and dtypes, "
        f"{sum(total.values()) - total['differences']} calls: {total['exact']} exact "
        f"({total['differences']} of them by differences), {total['refused']} refused, "
        f"{total['uncompared']} uncompared, {total['wrong']} wrong, {total['raw']} raw errors. "
        f"{clean} operators are exact in all. Worst relative error among the exact: "
        + ", ".join(f"{kind} {error:.0e}" for kind, error in worst.items())
        + "."
    )


def by_operator(results: Sequence[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.op, []).append(result)
    return groups


def line(name: str, group: Sequence[Result]) -> str:
    """One row: the counts, and the two most frequent remarks with the spellings that met them."""
    remarks: Counter[str] = Counter()
    seen: dict[str, set[str]] = {}
    for result in group:
        for said, times in result.details.items():
            remark = said.partition(", relative error")[0][:120].replace("|", "/")
            if not remark.startswith("unusable"):
                remarks[remark] += times
                seen.setdefault(remark, set()).add(result.way)
    total = count(group)
    counts = ", ".join(f"{total[each]} {each}" for each in COLUMNS if total[each])
    said = "; ".join(
        f"{remark} ({', '.join(sorted(seen[remark])[:3])})" for remark, _ in remarks.most_common(2)
    )
    return f"| `{name}` | {counts} | {said} |"


COLUMNS = ("exact", "differences", "refused", "uncompared", "wrong", "raw")


def table(results: Sequence[Result], seconds: float) -> str:
    """The committed table: operators that are exact in every call are only counted."""
    rows, refusing_out = [], 0
    for name, group in by_operator(results).items():
        refused_out = [r for r in group if r.way == "out=" and set(count([r])) == {"refused"}]
        refusing_out += bool(refused_out)
        rest = [result for result in group if result not in refused_out]
        if set(count(rest)) - {"exact"}:
            rows.append(line(name, rest))
    idle = sorted({full_name(op) for op in all_operators()} - set(by_operator(results)))
    return f"""# Torch's own operators on dual numbers

Written by `python tests/autodiff/operators.py --table tests/autodiff/OPERATORS.md` with torch
{torch.__version__} in {seconds:.0f} s on one core.

Each operator of `torch.testing._internal.common_methods_invocations.op_db`, with a forward
derivative in torch or without: as function, method, operator, in place (also with a view made
before, and on a view), with arguments by name, with `out=`, and by its aliases; in float64 and
complex128; with up to {CAP} of torch's sample inputs (of more, every n-th; {FEW} for mere
spellings); with all inputs dual, the first alone, and the others alone. Value and gradients against
the plain call, the tangent against `torch.func.jvp`. "differences": against central differences,
where `torch.func.jvp` raises or differs from them. Outputs that depend on a gauge (eigenvectors,
signs) go through torch's own `output_process_fn_grad` on both sides. Random operators start from
the same seed. Inputs are strided: sparse layouts occur as outputs only. "refused": raised
`TangentError`.

**{summary(results)}**

`out=` is refused by {refusing_out} operators, which is not repeated below. Operators that are not
exact against `torch.func.jvp` in every other call:

| operator | calls | what was said |
|---|---|---|
{chr(10).join(rows)}

Not run, having no float or complex input to vary, or no CPU kernel: {", ".join(idle)}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression for names of operators")
    parser.add_argument("--most", type=int, default=CAP, help="samples of each")
    parser.add_argument("--table", type=Path, help="write the table here")
    parser.add_argument("--json", type=Path, help="write every result here")
    parser.add_argument("--times", action="store_true", help="print the slowest operators")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start, results, times = time.time(), [], []
    for op in all_operators():
        if re.search(options.only, full_name(op)):
            begun = time.time()
            results += run_operator(op, options.most)
            times.append((time.time() - begun, full_name(op)))
    if options.json:
        options.json.write_text(json.dumps([vars(result) for result in results], indent=1))
    if options.table:
        options.table.write_text(table(results, time.time() - start))
    for result in results:
        if result.failed or options.only:
            print(result.op, result.dtype, result.way, dict(+result.outcomes))
            for remark, _ in result.details.most_common(3):
                print("   ", remark)
    if options.times:
        print(*(f"{seconds:.1f} s {name}" for seconds, name in sorted(times)[-20:]), sep="\n")
    print(summary(results), f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
