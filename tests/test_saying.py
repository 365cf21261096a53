# SPDX-License-Identifier: Apache-2.0
"""What is printed is printed as it is, on a terminal and in a file."""

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import scm_lightning
from scm_lightning import saying
from scm_lightning.saying import LITERAL, Pace, counted, show, working

PACKAGE = Path(scm_lightning.__file__).parent
TEXTS = ("runs/[exp]_lr1", 'pip install ".[fid]"', "set [/x]", "[red]x[/red]", ":smile:")


@pytest.fixture
def terminal(monkeypatch):
    """A terminal 80 letters wide."""
    written = StringIO()
    shown = Console(file=written, force_terminal=True, width=80, color_system=None, **LITERAL)
    monkeypatch.setattr(saying, "console", lambda: shown)
    return written


class Clock:
    """A clock that is set."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_is_markup(terminal, text):
    """In a table's title, heading, cell and caption, beside a bar, and beside a spinner."""
    show([text], [[text]], title=text, caption=text)
    assert terminal.getvalue().count(text) == 4
    terminal.truncate(0)
    with counted("begun", 2, keep=True) as advance:
        advance(1, text)
    assert text in terminal.getvalue()
    terminal.truncate(0)
    with working("begun") as now:
        now(text)
        saying.console()._live_stack[-1].refresh()
    assert text in terminal.getvalue()


def test_only_one_file_prints_with_rich():
    """Others would have to remember that rich reads brackets as markup."""
    owner = re.compile(r"rich\.(console|status|live|logging)|from rich import|rich\.print|track\(")
    others = [file for file in PACKAGE.rglob("*.py") if owner.search(file.read_text())]
    assert others == [PACKAGE / "saying.py"]


def test_off_a_terminal_there_is_a_line_now_and_then(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(Pace.__init__, "__defaults__", (None, 0, clock))
    with counted("images of [a]", 100) as advance:
        for _ in range(100):
            clock.now += 1
            advance(1)
    assert capsys.readouterr().out.splitlines() == [
        "images of [a] 10/100 | 0:01:30 left",
        "images of [a] 20/100 | 0:01:20 left",
        "images of [a] 40/100 | 0:01:00 left",
        "images of [a] 80/100 | 0:00:20 left",
    ]


def test_a_long_run_has_a_line_every_ten_minutes():
    """A second per step: sooner and sooner in the first minutes, then evenly."""
    clock = Clock()
    pace, lines = Pace(3000, clock=clock), []
    for step in range(1, 3001):
        clock.now += 1
        if pace.is_due(step):
            lines.append(step)
    assert lines == [10, 20, 40, 80, 160, 320, 640, 1240, 1840, 2440]


def test_lines_by_steps_do_not_depend_on_where_a_run_goes_on():
    pace = Pace(100, every=20, done=33, clock=lambda: 0.0)
    assert [step for step in range(34, 101) if pace.is_due(step)] == [40, 60, 80, 100]
