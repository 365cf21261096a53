# SPDX-License-Identifier: Apache-2.0
"""Networks that nobody here wrote, and the table of what each tangent method does with them.

python tests/autodiff/foreign_networks.py --table README-fragment.md
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

from foreign_adapter import Foreign, Network, built
from foreign_checks import Verdict, judge
from foreign_images import IMAGES
from foreign_tokens import TOKENS
from foreign_torch import TORCH
from foreign_unets import UNETS
from foreign_videos import VIDEOS

NETWORKS: dict[str, Network] = {**UNETS, **IMAGES, **TOKENS, **VIDEOS, **TORCH}
METHODS = ("dual", "two_pass", "func", "finite_difference")
HEAD = (
    "network | parameters | time at pi/2 | type | method | F | dF | gradients | bound | against | "
    "answer"
)


def rows(methods: list[str], only: list[str]) -> Iterator[str]:
    """Lines of a Markdown table, one a network, type and method."""
    yield f"| {HEAD} |"
    yield "|" + " --- |" * len(HEAD.split(" | "))
    for name in only:
        network = NETWORKS[name]
        module = built(network)
        size = sum(each.numel() for each in module.parameters())
        time = f"{module.time_max:g}" if isinstance(module, Foreign) else "pi/2"
        for mode in network.modes:
            for method in methods:
                row = (name, str(size), time, mode, method, *cells(judge(network, method, mode)))
                yield "| " + " | ".join(row) + " |"


def cells(verdict: Verdict) -> tuple[str, ...]:
    errors = (verdict.F, verdict.dF, verdict.gradients, verdict.bound)
    line = verdict.line.replace("|", "\\|")[:160]
    answer = f"{verdict.answer}: {line}" if line else verdict.answer
    return *("" if each is None else f"{each:.0e}" for each in errors), verdict.source, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, help="write the Markdown table here as well")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = []
    for line in rows(options.methods, options.only):
        print(line, flush=True)
        lines.append(line)
    if options.table:
        options.table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
