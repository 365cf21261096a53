# SPDX-License-Identifier: Apache-2.0
"""A text that states numbers, and the results that it states them from."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent
ROOT = RESULTS.parents[1]
NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
SPACE = r"\s+(?:\#\s+)?"  # a line may break there, also in the head of a YAML file


class Statement(NamedTuple):
    """Some text of a file, and its numbers."""

    file: str
    text: str
    numbers: list[str]

    def find(self, content: str) -> list[re.Match[str]]:
        """Find it in the file, wherever lines break, with any numbers."""
        words = [NUMBER.join(map(re.escape, word.split("{}"))) for word in self.text.split()]
        return list(re.finditer(SPACE.join(words), content))

    def written_into(self, content: str) -> str:
        """Replace its numbers.

        Raises:
            ValueError: if it does not stand there once.
        """
        found = self.find(content)
        if len(found) != 1:
            raise ValueError(f"{self.file} must state once, not {len(found)} times: {self.text}")
        (match,) = found
        for group in reversed(range(len(self.numbers))):
            start, end = match.span(group + 1)
            content = content[:start] + self.numbers[group] + content[end:]
        return content


@cache
def result(name: str) -> dict[str, Any]:
    """Read a result of this folder."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def decimals(places: int, *values: float) -> list[str]:
    """Write numbers with so many decimals."""
    return [f"{value:,.{places}f}" for value in values]
