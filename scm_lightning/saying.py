# SPDX-License-Identifier: Apache-2.0
"""Messages to the user: what happens on standard output, what is amiss on standard error."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only


def say(line: str) -> None:
    """Print what a run does, in the first process only.

    Args:
        line: the line.
    """
    if _is_first():
        print(line, flush=True)


def warn(line: str) -> None:
    """Print what the user should know, in any process.

    Args:
        line: the line, without the name of the program.
    """
    print(f"scm: {line}", file=sys.stderr, flush=True)


def show(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False, **options: Any
) -> None:
    """Print a table, in the first process only.

    Args:
        headings: of its columns.
        rows: their cells.
        numbers: whether all columns but the first hold numbers.
        options: of rich's `Table`, such as its title.
    """
    from rich.console import Console  # slow for a line on standard error
    from rich.table import Column, Table

    if not _is_first():
        return
    right = headings[1:] if numbers else ()
    table = Table(
        *(Column(each, justify="right" if each in right else "left") for each in headings),
        **options,
    )
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)


def _is_first() -> bool:
    return not getattr(rank_zero_only, "rank", 0)  # set by Lightning, if it is there
