# SPDX-License-Identifier: Apache-2.0
"""Statements of the paper's FIDs."""

from collections.abc import Iterator
from itertools import chain

from statement import Statement, decimals, result

SIZES = {
    "ImageNet 64, teacher": ("imagenet64", "teacher"),
    "ImageNet 64, sCT": ("imagenet64", "sct"),
    "ImageNet 64, sCD": ("imagenet64", "scd"),
    "ImageNet 512, teacher": ("imagenet512", "teacher"),
    "ImageNet 512, sCT": ("imagenet512", "sct"),
    "ImageNet 512, sCD": ("imagenet512", "scd"),
    "sCD with `variants/vsd.yaml`": ("imagenet512", "vsd"),
    "sCD with `variants/multistep.yaml`, 4 / 16 steps": ("imagenet512", "multistep"),
}
"""Rows of the table of sizes."""


def of_the_paper() -> Iterator[Statement]:
    """State the paper's FIDs."""
    paper, readme = result("paper"), "configs/README.md"
    of_students = "The paper's FID: {} in one step, {} in two"
    for text, (data, run) in SIZES.items():
        rows = [decimals(2, *sized[run]) for size, sized in paper[data].items() if size != "s"]
        cells = " | ".join(" / ".join("{}" for _ in row) for row in rows)
        yield Statement(readme, f"| {text} | {cells} |", list(chain(*rows)))
    for data in ("cifar10", "imagenet64", "imagenet512"):
        base = paper[data].get("s", paper[data])
        guided = data == "imagenet512"
        for run in ("sct", "scd"):
            given = " (guidance 1.5), {} in two" if guided and run == "scd" else ", {} in two"
            yield Statement(
                f"configs/{data}_{run}.yaml",
                "The paper's FID: {} in one step" + given,
                decimals(2, *base[run]),
            )
            yield Statement(
                readme, f"| `{data}_{run}.yaml` | | {{}} / {{}}", decimals(2, *base[run])
            )
        yield Statement(
            f"configs/{data}_teacher.yaml", "The paper's FID: {}", decimals(2, *base["teacher"])
        )
        for size, scores in paper[data].items():
            if data == "cifar10" or size == "s":
                continue
            for run in ("teacher", "sct", "scd"):
                file = f"configs/sizes/{data}_{run}_{size}.yaml"
                head = f"Size {size.upper()} of configs/{data}_{run}.yaml: {{}} M parameters"
                yield Statement(file, head, [f"{scores['parameters']:,.1f}"])
                text = "The paper's FID: {}" if run == "teacher" else of_students
                yield Statement(file, text, decimals(2, *scores[run]))
