# SPDX-License-Identifier: Apache-2.0
"""The model card: a README.md that says of weights what is known, and of scores what was measured.

Nothing in it is taken on trust: numbers are those of `scm test`, the picture is drawn with the
lines under "Use".
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from scm_lightning import __version__
from scm_lightning.export.facts import SamplingFacts
from scm_lightning.storage import Export

CARD = "README.md"
PICTURE = "samples.png"
NOT_MEASURED = "not measured"
LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
}
"""Names by which the hub knows licences."""
KINDS = {
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "IS",
    "accuracy": "accuracy",
    "nearest": "nearest",
    "word_match": "word match",
}
"""Heads of scores that are not distances, which are named as they are."""


ROWS = {
    "floor": "held-out data",
    "teacher": "its teacher",
    "denoiser": "its teacher, 1 step",
    "1_step": "1 step",
}


def card(
    title: str,
    export: Export,
    facts: SamplingFacts,
    library: str,
    use: Mapping[str, str],
    is_drawn: bool,
    remarks: Sequence[str] = (),
) -> str:
    """Write the card.

    Args:
        title: name of the model.
        export: its weights.
        facts: what is known of it.
        library: name of the library that loads it.
        use: lines of Python, by what is said before them.
        is_drawn: whether `samples.png` lies beside the card.
        remarks: further measured facts, a sentence each.
    """
    lines = [f"# {title}", ""]
    if is_drawn:
        lines += [f"![samples]({PICTURE})", ""]
    lines += ["## Use", ""]
    for said, code in use.items():
        lines += [said, "", "```python", code.strip(), "```", ""]
    lines += ["## What it is", "", *_table(("", ""), _known(export, facts).items()), ""]
    lines += [*(f"{remark}\n" for remark in remarks), "## Scores", "", *_scores(facts.scores), ""]
    lines += ["## Licence", "", _licence(facts.licence), ""]
    if facts.network is not None:
        network = json.dumps(facts.network, indent=2)
        lines += ["## Configuration of the network", "", "```json", network, "```", ""]
    return f"---\n{_head(facts, library)}\n---\n" + "\n".join(lines)


def _head(facts: SamplingFacts, library: str) -> str:
    """The head, which the hub reads."""
    name = facts.licence and LICENCES.get(facts.licence, "other")
    other: dict[str, Any] = {"license_name": facts.licence} if name == "other" else {}
    data = ModelCardData(
        license=name,
        library_name=library,
        pipeline_tag="unconditional-image-generation",
        tags=["scm", "consistency-model", "scm_lightning"],
        **other,
    )
    text: str = data.to_yaml()
    return text


def _known(export: Export, facts: SamplingFacts) -> dict[str, str]:
    count = sum(weight.numel() for weight in export.tensors.values())
    average = f"average {export.profile}".strip() if export.weights == "ema" else "as trained"
    known = {
        "weights": f"{count:,} numbers, {average}, step {export.step:,} of a {export.module} run",
        "sigma_data": f"{facts.sigma_data:g}",
    }
    if (data := facts.data) is not None:
        shape = " x ".join(map(str, data.shape))
        known["data"] = f"{data.source}; {shape}" + (" latents" if data.latents else "")
        known["classes"] = str(data.num_classes or "none")
    for name, value in facts.training.items():
        if name not in ("step", *known) and isinstance(value, str | int | float):
            known[name.replace("_", " ")] = f"{value:,}" if isinstance(value, int) else str(value)
    return {**known, "written by": f"scm_lightning {__version__}"}


def _scores(scores: Mapping[str, Any]) -> list[str]:
    """Table of the scores that there are, and how they were measured."""
    measured = {
        tuple(key.split("/", 1)): entry
        for key, entry in scores.items()
        if "/" in key and not key.startswith("nfe/")
    }
    if not measured:
        return [f"{NOT_MEASURED[0].upper()}{NOT_MEASURED[1:]}: `scm test` has not been run."]
    rows = [*dict.fromkeys(row for _, row in measured)]
    kinds = [*dict.fromkeys(kind for kind, _ in measured)]
    cells = []
    for row in rows:
        calls = scores.get(f"nfe/{row}", {}).get("value", "-")
        found = [_cell(measured.get((kind, row))) for kind in kinds]
        cells.append((ROWS.get(row, row.replace("_step", " steps")), str(calls), *found))
    heads = ("samples", "network calls", *(KINDS.get(kind, kind) for kind in kinds))
    protocol = {**scores.get("protocol", {})}
    if "checkpoint" in protocol:
        protocol["checkpoint"] = Path(protocol["checkpoint"]).name  # its folders are of one machine
    words = [f"- {name.replace('_', ' ')}: {text}" for name, text in protocol.items()]
    return [*_table(heads, cells), "", *words]


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return NOT_MEASURED
    return f"{entry['value']:.4g} ({entry['num_samples']:,})"


def _table(heads: Sequence[str], rows: Any) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _licence(licence: str | None) -> str:
    if licence is None:
        return "None is named, neither by its teacher nor by its run."
    return f"{licence}. It is that of the weights which these were made from, and goes with them."
