# SPDX-License-Identifier: Apache-2.0
"""Damaged files of every kind are read or refused in one line, whatever the damage; see fuzz_*.py.

A failure names kind and number: `damaged_file(kind, number)` makes that file again.
"""

import sys
from functools import cache
from pathlib import Path

import fuzz_data
import fuzz_weights
import pytest
from fuzz_engine import Kind, fuzz
from fuzz_mutations import mutate_bytes


@cache
def kinds() -> list[Kind]:
    """Of all rooms."""
    import fuzz_sources

    return [*fuzz_weights.kinds(), *fuzz_data.kinds(), *fuzz_sources.kinds()]


def run(share: float, folder: Path) -> list[str]:
    """A share of all damaged files; prints what came of them."""
    accounts = [fuzz(kind, range(max(round(share * kind.count), 3)), folder) for kind in kinds()]
    findings = [finding for each in accounts for finding in each.findings]
    num_read, refused = sum(a.num_read for a in accounts), sum(a.num_refused for a in accounts)
    print(
        f"\n{num_read} read, {refused} refused, {len(findings)} findings in {len(accounts)} kinds, "
        f"{sum(each.seconds for each in accounts):.0f} s"
    )
    return findings


def test_some_damaged_files_are_read_or_refused(tmp_path):
    assert run(0.004, tmp_path / "files") == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_thousand_damaged_files_are_read_or_refused(tmp_path):
    assert run(1, tmp_path / "files") == []


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda file: [].pop(), "IndexError"),
        (lambda file: bool(b"x" * (5 << 28)), "MB"),
        (lambda file: Path("/tmp/canary").write_text(""), "writes /tmp/canary"),
        (lambda file: _raise("\n"), "a line of 0 letters"),
        (lambda file: sys.exit(3), "SystemExit"),
        (lambda file: __import__("os").kill(__import__("os").getpid(), 9), "the process died"),
        (lambda file: file.read_bytes(), "is not what it was"),
    ],
)
def test_what_is_wrong_is_found(read, said, tmp_path):
    """Every rule refuses what breaks it."""
    kind = Kind("x", {"x": b"content"}, read, mutate_bytes, 1, is_covered="not what" in said)
    findings = fuzz(kind, range(2), tmp_path / "files").findings
    assert len(findings) >= 1
    assert said in findings[0]
    Path("/tmp/canary").unlink(missing_ok=True)


def _raise(message):
    raise ValueError(message)
