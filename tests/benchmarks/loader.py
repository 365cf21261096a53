# SPDX-License-Identifier: Apache-2.0
"""Samples per second of the training loader, against its workers, beside what a run consumes.

    python tests/benchmarks/loader.py --data data/digits/shards --steps_per_second 60

Prints a table; the one of README.md beside this file was made so.
"""

import argparse
import time

from rich.console import Console
from rich.table import Table

from scm_lightning.data import Reading, Shards

SECONDS = 4.0
"""How long each row is measured, after the first batches."""
WARM_UP = 8


def rate(root: str, batch_size: int, num_workers: int, mapped: bool) -> float:
    """Samples per second of one way to load."""
    data = Shards(0.5, root, batch_size, num_workers=num_workers, reading=Reading(mapped=mapped))
    data.setup("fit")
    loader, given = data.train_dataloader(), 0
    start = None
    while True:
        for _ in loader:
            given += 1
            if given == WARM_UP:
                start = time.perf_counter()
            if start is not None and time.perf_counter() - start > SECONDS:
                return (given - WARM_UP) * batch_size / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of shards")
    parser.add_argument("--steps_per_second", type=float, required=True, help="of the run")
    parser.add_argument("--batch_size", type=int, default=128)
    options = parser.parse_args()
    consumed = options.steps_per_second * options.batch_size
    table = Table(title=f"{options.data}: a run consumes {consumed:,.0f} samples/s")
    for column in ("reading", "workers", "samples/s", "times what is consumed"):
        table.add_column(column, justify="right")
    for mapped in (True, False):
        for num_workers in (0, 1, 2, 4):
            measured = rate(options.data, options.batch_size, num_workers, mapped)
            row = ("mapped" if mapped else "streamed", str(num_workers), f"{measured:,.0f}")
            table.add_row(*row, f"{measured / consumed:,.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
