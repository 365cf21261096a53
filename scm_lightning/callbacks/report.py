# SPDX-License-Identifier: Apache-2.0
"""What `scm test` prints and writes."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from scm_lightning import __version__
from scm_lightning.callbacks.run import SAMPLER_NAMES
from scm_lightning.metrics import Score


def metrics_content(
    protocol: Mapping[str, str],
    scores: Mapping[str, Mapping[str, Score]],
    nfe: Mapping[str, int],
    seed: int,
) -> dict[str, Any]:
    """Content of `metrics.json`: `KIND/ROW` to a value, with its sample count and seed.

    Args:
        protocol: how the numbers were measured, in words.
        scores: by row, then by kind.
        nfe: network calls per sample, by row.
        seed: seed of the samples.
    """
    content: dict[str, Any] = {"protocol": {**protocol, "scm_lightning": __version__}}
    for row, of_row in scores.items():
        for kind, score in of_row.items():
            content[f"{kind}/{row}"] = {**score._asdict(), "seed": seed}
    for row, calls in nfe.items():
        content[f"nfe/{row}"] = {"value": calls}
    return content


def score_table(
    scores: Mapping[str, Mapping[str, Score]], nfe: Mapping[str, int], extractor: str
) -> Table:
    """A table with a row for every way to draw samples.

    Args:
        scores: by row, then by kind.
        nfe: network calls per sample, by row.
        extractor: description of what the distance looks at.
    """
    sizes = dict.fromkeys(("fd", "fd_block"), 0)
    for of_row in scores.values():
        for kind in sizes:
            sizes[kind] = max(sizes[kind], of_row[kind].num_samples if kind in of_row else 0)
    table = Table(title=f"Frechet distance in {extractor} (lower is better; no FID)")
    table.add_column("samples")
    table.add_column("NFE", justify="right")
    table.add_column(f"distance, {sizes['fd']:,}", justify="right")
    table.add_column(f"distance, {sizes['fd_block']:,}", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("nearest", justify="right")
    for row, of_row in scores.items():
        whole = of_row["fd"] if of_row["fd"].num_samples == sizes["fd"] else None
        cells = [whole, of_row.get("fd_block"), of_row.get("accuracy"), of_row.get("nearest")]
        numbers = [f"{cell.value:.3f}" if cell else "-" for cell in cells]
        table.add_row(SAMPLER_NAMES.get(row, row), str(nfe.get(row, "-")), *numbers)
    table.caption = (
        "distance, N: over N samples; compare the floor with the second only. accuracy: share "
        "given the class asked for. nearest: distance to the nearest training image, in sigma_data."
    )
    return table
