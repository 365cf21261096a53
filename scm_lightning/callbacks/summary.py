# SPDX-License-Identifier: Apache-2.0
"""Table of what a run trains."""

from typing import Any

from lightning.pytorch.callbacks import RichModelSummary
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count

from scm_lightning.saying import say, show

COLUMNS = {"Name": "part", "Type": "class", "Params": "parameters"}
"""Lightning's columns, with their headings here. It counts FLOPs of an example input, which a
generator does not have: `scm bench --dry-run` does."""


class Summary(RichModelSummary):
    """Lightning's summary of the parts that have parameters, with one line of sums.

    Args:
        max_depth: depth of the parts that are listed; 0 for no summary.
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *sums: Any,
        **more: Any,
    ) -> None:
        """Print it.

        Args:
            summary_data: columns, by their headings.
            total_parameters: number of all parameters.
            trainable_parameters: number of those that are trained.
            sums: others of Lightning's.
            more: others of Lightning's.
        """
        columns = dict(summary_data)
        rows = zip(*(columns[name] for name in COLUMNS), strict=True)
        show([*COLUMNS.values()], [row for row in rows if row[-1].strip() != "0"])
        trained = get_human_readable_count(trainable_parameters).strip()
        whole = get_human_readable_count(total_parameters).strip()
        say(f"{trained} of {whole} parameters are trained")
