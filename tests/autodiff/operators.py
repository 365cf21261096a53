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
from dataclasses import asdict, dataclass, field
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
QUICK_EVERY, QUICK_SAMPLES = 12, 4
"""The quick choice: every twelfth operator of the list, and all with a rule of their own."""


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


def run_operator(op: Any, most: int = CAP) -> Iterator[Result]:
    """Every spelling in every dtype that torch supports for it on a CPU."""
    for dtype in DTYPES:
        if dtype not in op.supported_dtypes("cpu"):
            continue
        given = list(samples(op, dtype, most))
        for way in ways(op):
            result = run_way(op, dtype, way, thinned(given, min(way.most, most)))
            if result.samples:
                yield result


def quick_choice() -> list[Any]:
    """A fixed sample of the list, with all operators that the engine has a rule for."""
    ruled = {str(getattr(rule, "__name__", rule)) for rule in getattr(engine(), "RULES", ())}
    return [
        op
        for index, op in enumerate(all_operators())
        if index % QUICK_EVERY == 0 or {op.name, op.name.rpartition(".")[2]} & ruled
    ]


def summary(results: Sequence[Result]) -> str:
    total: Counter[str] = Counter()
    references: Counter[str] = Counter()
    for result in results:
        total += result.outcomes
        references += result.references
    names = {result.op for result in results}
    clean = names - {r.op for r in results if set(+r.outcomes) - {"exact", "unusable"}}
    return (
        f"{len(names)} operators, {len(results)} spellings and dtypes, "
        f"{sum(total.values()) - total['unusable']} calls: {total['exact']} exact "
        f"({references['differences']} of them by differences), {total['refused']} refused, "
        f"{total['uncompared']} uncompared, {total['wrong']} wrong, {total['raw']} raw errors. "
        f"{len(clean)} operators are exact in all."
    )


def lines(results: Sequence[Result]) -> Iterator[str]:
    """One line per operator that is not simply exact against `torch.func.jvp` in every call."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.op, []).append(result)
    for name, group in grouped.items():
        total: Counter[str] = Counter()
        seen: dict[str, set[str]] = {}
        details: Counter[str] = Counter()
        for result in group:
            total += result.outcomes
            total["differences"] += result.references["differences"]
            for detail, count in result.details.items():
                if not detail.startswith("unusable"):
                    details[detail] += count
                    seen.setdefault(detail, set()).add(result.way)
        counts = [f"{total[each]} {each}" for each in COLUMNS if total[each]]
        if set(+total) - {"exact", "unusable"}:
            said = "; ".join(
                f"{detail.replace('|', '/')} ({', '.join(sorted(seen[detail])[:3])})"
                for detail, _ in details.most_common(2)
            )
            yield f"| `{name}` | {', '.join(counts)} | {said} |"


COLUMNS = ("exact", "differences", "refused", "uncompared", "wrong", "raw")


def table(results: Sequence[Result], seconds: float) -> str:
    head = (
        "# Torch's own operators on dual numbers\n\n"
        "Written by `python tests/autodiff/operators.py --table tests/autodiff/OPERATORS.md`, "
        f"torch {torch.__version__}, {seconds:.0f} s on one core.\n"
        "Each operator of `torch.testing._internal.common_methods_invocations.op_db`, as function, "
        "method, in-place, operator, by keywords, with `out=` and by its aliases, in float64 and "
        f"complex128, with up to {CAP} sample inputs (of more, every n-th; {FEW} for a "
        "spelling), with all inputs dual, the first alone, the others alone. Value and gradients "
        'against the plain call, the tangent against `torch.func.jvp`; "differences" counts those '
        "that were compared with central differences because it raises or differs from them.\n\n"
        f"**{summary(results)}**\n\nOperators that are not exact in every call:\n\n"
        "| operator | calls | what was said |\n|---|---|---|\n"
    )
    return head + "\n".join(lines(results)) + "\n"


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
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    if options.table:
        options.table.write_text(table(results, time.time() - start))
    for result in results:
        if result.failed or options.only:
            print(result.op, result.dtype, result.way, dict(+result.outcomes), dict(result.details))
    if options.times:
        print(*(f"{seconds:.1f} s {name}" for seconds, name in sorted(times)[-20:]), sep="\n")
    print(summary(results), f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
