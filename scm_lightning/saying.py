# SPDX-License-Identifier: Apache-2.0
"""Messages to the user: what happens on standard output, what is amiss on standard error.

Everything is printed as it is: no text is markup, so that brackets in names and paths stay. On a
terminal long work has a bar; in a file, a pipe or a job's log it has a plain line now and then.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

LITERAL = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
"""Options of a console of rich that prints what it is handed, and leaves long lines whole."""
SOONEST, LATEST = 10, 600
"""Between two lines about long work that no number of steps asks for. Seconds."""


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


@cache
def console() -> "Console":
    """Rich's own console on standard output, to which no text is markup from now on.

    It is one for all, since only bars of one console stand below each other.
    """
    from rich import get_console, reconfigure  # slow for a line on standard error

    reconfigure(**LITERAL)
    return get_console()


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
    console().print(table, soft_wrap=False)


class Pace:
    """Pace of long work: when its next line is due, and how long the rest of it will take.

    A line is due every so many steps, and besides by time: after 10 seconds, 20, 40, ..., and then
    every ten minutes.

    Args:
        total: steps of the work; infinite, if nobody knows.
        every: steps between two lines; None for lines by time alone.
        done: steps that were done before.
        clock: tells the time. Seconds.
    """

    def __init__(
        self,
        total: float,
        every: int | None = None,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.every, self.clock = total, every, clock
        self._start = self._last = (clock(), done)

    def is_due(self, done: int) -> bool:
        """Tell whether a line is due after so many steps; then it is taken as printed."""
        now, (then, before) = self.clock(), self._last
        by_time = now - then >= min(max(then - self._start[0], SOONEST), LATEST)
        if not by_time and (self.every is None or done // self.every == before // self.every):
            return False
        self._last = (now, done)
        return True

    def left(self, done: int) -> str:
        """Time left, in words; nothing, if it cannot be told."""
        start, before = self._start
        if done <= before or done >= self.total or self.total == float("inf"):
            return ""
        seconds = (self.clock() - start) / (done - before) * (self.total - done)
        return f"{timedelta(seconds=round(seconds))} left"


@contextmanager
def counted(what: str, total: int, *, keep: bool = False) -> Iterator[Callable[..., None]]:
    """Show how far long work is, in the first process only.

    Args:
        what: the work, in words.
        total: its steps.
        keep: whether the bar stays on the terminal when the work is done.

    Yields:
        What is called with the number of steps that were done since, and perhaps with other words.
    """
    from rich.progress import MofNCompleteColumn, Progress

    bar = Progress(
        *literal_columns(),
        MofNCompleteColumn(),
        console=console(),
        transient=not keep,
        speed_estimate_period=LATEST,
    )
    is_shown = bar.console.is_interactive and _is_first()
    bar.disable = not is_shown
    pace, done = Pace(total), 0
    with bar:
        task = bar.add_task(what, total=total)

        def advance(steps: int = 0, words: str = what) -> None:
            nonlocal done
            done += steps
            bar.update(task, advance=steps, description=words)
            if not is_shown and pace.is_due(done):
                parts = (f"{words} {done:,}/{total:,}", pace.left(done))
                say(" | ".join(filter(None, parts)))

        yield advance


def literal_columns() -> tuple["ProgressColumn", ...]:
    """Columns of a bar of rich: words that are no markup, bar, share and time left."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    words = TextColumn("{task.description}", markup=False)
    return words, BarColumn(), TaskProgressColumn(), TimeRemainingColumn()


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done while nothing can be counted, in the first process only.

    Args:
        what: the work, in words.

    Yields:
        What is called with the words of the work that comes next.
    """
    from rich.text import Text

    shown = console()
    if not (shown.is_interactive and _is_first()):
        yield lambda words: None
        return
    with shown.status(Text(what)) as status:
        yield lambda words: status.update(Text(words))


def _is_first() -> bool:
    return not getattr(rank_zero_only, "rank", 0)  # set by Lightning, if it is there
