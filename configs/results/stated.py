# SPDX-License-Identifier: Apache-2.0
"""Write the numbers of the committed results into the texts that state them.

    python configs/results/stated.py

A statement is some text of a file with `{}` in the place of every number. It is found wherever its
lines break, and its numbers are replaced by those of the results. A test does the same, and refuses
a text that states other numbers, or a score that no result has.
"""

from own_results import (
    of_ablations,
    of_benchmarks,
    of_clips,
    of_digits,
    of_fashion,
    of_given,
    of_latents,
    of_sweep,
    of_words,
    of_words_in_heads,
)
from papers_results import of_the_paper
from statement import ROOT, Statement


def statements() -> list[Statement]:
    """List all of them."""
    return [
        *of_digits(),
        *of_given(),
        *of_sweep(),
        *of_fashion(),
        *of_latents(),
        *of_clips(),
        *of_words(),
        *of_words_in_heads(),
        *of_ablations(),
        *of_benchmarks(),
        *of_the_paper(),
    ]


if __name__ == "__main__":
    for statement in statements():
        path = ROOT / statement.file
        before = path.read_text()
        after = statement.written_into(before)
        if after != before:
            path.write_text(after)
            print(f"{statement.file}: {statement.text}  {', '.join(statement.numbers)}")
