# SPDX-License-Identifier: Apache-2.0
"""Report of `scm test`, as it is printed and written."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from scm_lightning import __version__
from scm_lightning.callbacks.run import SAMPLER_NAMES
from scm_lightning.data import ShardDataModule
from scm_lightning.metrics import FeatureExtractor, SampleScores, Score, fidelity
from scm_lightning.metrics.reference import MAX_NEAREST_BYTES

OTHER_COLUMNS = {
    "kid": "KID",
    "precision": "prec.",
    "recall": "recall",
    "inception_score": "IS",
    "accuracy": "acc.",
    "nearest": "near",
    "deviation": "dev.",
}
"""Kinds of scores behind the distances, and the heads of their columns, where a row has them."""
KID_UNIT = 1e-3
"""Unit of KID in the table; `metrics.json` has the number itself."""


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


def protocol(
    datamodule: ShardDataModule,
    scoring: SampleScores,
    scores: Mapping[str, Mapping[str, Score]],
    nfe: Mapping[str, int],
    checkpoint: str,
) -> dict[str, str]:
    """Describe in words how the numbers were measured.

    Args:
        datamodule: owner of the data that samples are compared with.
        scoring: what was measured.
        scores: by row, then by kind.
        nfe: network calls per sample, by row.
        checkpoint: file of the weights.
    """
    reference, extractor = scoring.reference, scoring.reference.extractor
    key, index = extractor.distance_key, datamodule.index
    counts = {row: of_row[key].num_samples for row, of_row in scores.items() if key in of_row}
    block = (
        f"mean over blocks of {scoring.block_size} samples, as many as there are held-out images"
    )
    subset = "min(1000, samples, training images)"
    words = {
        "distance": _distance_in(extractor),
        "images": extractor.preparation,
        "samples": ", ".join(f"{row} {count}" for row, count in counts.items()),
        "seed": str(datamodule.sample_seed),
        "nfe": ", ".join(f"{row} {calls}" for row, calls in nfe.items()),
        "reference": f"{reference.statistics.num_samples} images of the split train of "
        f"{index.source}; digest {reference.digest[:12]}",
        **dict.fromkeys((f"{each}_block" for each in extractor.distances), block),
        "checkpoint": checkpoint,
    }
    if index.latents is not None:
        words["reference"] += f"; decoded from latents by {index.latents.autoencoder}"
    if any("kid" in of_row for of_row in scores.values()):
        words["kid"] = f"mean over 100 subsets of {subset}"
    if any("precision" in of_row for of_row in scores.values()):
        words["precision_recall"] = (
            f"neighborhood {fidelity.NEIGHBOURHOOD}, against {len(reference.features)} training "
            "images"
        )
    if any("word_match" in of_row for of_row in scores.values()):
        words["word_match"] = f"nearest training image in {extractor.description}"
    if left_out := _left_out(scoring):
        words["left_out"] = " ".join(left_out)
    return words


def caption(scoring: SampleScores, has_deviation: bool = False) -> str:
    """Text below the table.

    Args:
        scoring: what was measured.
        has_deviation: whether samples were compared with what they were given.
    """
    heads = scoring.reference.extractor.distances.values()
    names = " and ".join(f"{head}, N" for head in heads)
    words = [f"{names}: over N samples; compare rows within a column only."]
    if fidelity.is_installed() and scoring.kid:
        words.append(f"KID: in {KID_UNIT:g}, subsets of at most {fidelity.KID_SUBSET_SIZE:,}.")
    if fidelity.is_installed() and scoring.precision_recall:
        words.append("prec., recall: share of samples near data, of data near samples.")
    if not scoring.reference.extractor.is_inception:
        words.append("acc.: share given the class asked for.")
    if scoring.reference.has_nearest:
        words.append("near: distance to the nearest training image, in sigma_data.")
    if has_deviation:
        words.append("dev.: root mean square difference from what was given, pixels from -1 to 1.")
    return " ".join([*words, *_left_out(scoring)])


def score_table(
    scores: Mapping[str, Mapping[str, Score]],
    nfe: Mapping[str, int],
    extractor: FeatureExtractor,
    caption: str,
) -> Table:
    """A table with a row for every way to draw samples.

    Args:
        scores: by row, then by kind.
        nfe: network calls per sample, by row.
        extractor: what the distance looks at.
        caption: what stands below.
    """
    distances = {
        (head, size): {
            row: of_row[kind]
            for row, of_row in scores.items()
            for kind in (key, f"{key}_block")
            if kind in of_row and of_row[kind].num_samples == size
        }
        for key, head in extractor.distances.items()
        for size in _sizes(scores, key)
    }
    others = [kind for kind in OTHER_COLUMNS if any(kind in of_row for of_row in scores.values())]
    title = f"{_distance_in(extractor)}; lower is better"
    table = Table(title=title, caption=Text(caption), box=SIMPLE_HEAD, padding=0)  # for 80 columns
    table.add_column("samples")
    heads = (f"{head}, {size:,}" for head, size in distances)
    for head in ("NFE", *heads, *(OTHER_COLUMNS[kind] for kind in others)):
        table.add_column(head, justify="right", no_wrap=True)
    for row, of_row in scores.items():
        cells = [*(column.get(row) for column in distances.values()), *map(of_row.get, others)]
        units = [
            *(1.0 for _ in distances),
            *(KID_UNIT if kind == "kid" else 1.0 for kind in others),
        ]
        numbers = [
            f"{cell.value / unit:.3f}" if cell else "-"
            for cell, unit in zip(cells, units, strict=True)
        ]
        table.add_row(SAMPLER_NAMES.get(row, row), str(nfe.get(row, "-")), *numbers)
    return table


def _sizes(scores: Mapping[str, Mapping[str, Score]], key: str) -> list[int]:
    """Numbers of samples that a distance was measured over, the largest first."""
    kinds = (key, f"{key}_block")
    found = (
        of_row[kind].num_samples for of_row in scores.values() for kind in of_row if kind in kinds
    )
    return sorted(set(found), reverse=True)


def _distance_in(extractor: FeatureExtractor) -> str:
    """Name of the distance: FID, or a Frechet distance that is not one."""
    if extractor.is_inception:
        return f"{extractor.distance_name} in {extractor.description}"
    name = extractor.distance_name
    words = "Frechet distance" if name == "FD" else f"Frechet distance {name}"
    return f"{words} in {extractor.description}; no FID"


def _left_out(scoring: SampleScores) -> list[str]:
    """Scores that are missing, and why."""
    words = []
    if not fidelity.is_installed() and (scoring.kid or scoring.precision_recall):
        words.append(
            f"KID, precision and recall are left out: torch-fidelity is not installed "
            f"({fidelity.INSTALL})."
        )
    if not scoring.reference.data.comparable:
        words.append("nearest is left out: samples are latents, and compared with images.")
    elif not scoring.reference.has_nearest:
        words.append(
            f"nearest is left out: the data are larger than {MAX_NEAREST_BYTES / 2**30:g} GiB."
        )
    return words
