# SPDX-License-Identifier: Apache-2.0
"""Report of `scm ablate`: mean and spread over seeds, and every seed's value.

The spread is the standard deviation of the seeds (N - 1), not that of their mean. In the panels
over time a line is the median of the seeds, its band reaches from the lowest to the highest.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_lightning import __version__
from scm_lightning.cli.ablation import Ablation, Trial, read_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES_FILE = "gradient_noise.json"
CURVES = {
    "gradient_noise": "gradient: variance / squared mean",
    "gradient_variance": "gradient: variance",
    "tangent_norm": "mean norm of g",
    "dF_dt": "rms of dF/dt along the ODE",
    "partial_F_partial_t": "rms of the derivative of F in t alone",
}
"""Quantities over time that the callback `GradientNoise` writes, in words."""
WIDE = 20.0
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""


def collect(
    ablation: Ablation, planned: Iterable[Trial], failed: Mapping[Path, str]
) -> dict[str, Any]:
    """Read the scores and curves of all runs.

    Args:
        ablation: what was run.
        planned: its runs.
        failed: last lines of those that failed, by folder.

    Returns:
        Content of `results.json`: of every variant the scores by seed with mean and standard
        deviation, the curves over t by seed, and the failures by seed.

    Raises:
        ValueError: if a score is not in a run's `metrics.json`.
    """
    variants: dict[str, Any] = {
        name: {"scores": {score: {"seeds": {}} for score in ablation.scores}}
        | {"curves": {}, "failed": {}}
        for name in ablation.variants
    }
    for variant, seed, run in planned:
        if run.folder in failed:
            variants[variant]["failed"][str(seed)] = failed[run.folder]
            continue
        for score, value in _scores(run.folder / run.product, ablation.scores).items():
            variants[variant]["scores"][score]["seeds"][str(seed)] = value
        if (run.folder / CURVES_FILE).is_file():
            measured = read_map(run.folder / CURVES_FILE)
            variants[variant]["curves"][str(seed)] = {
                name: measured[name] for name in ("t", "tan_t", *CURVES) if name in measured
            }
    for of_variant in variants.values():
        for score in of_variant["scores"].values():
            values = list(score["seeds"].values())
            score["mean"] = statistics.fmean(values) if values else None
            score["standard_deviation"] = statistics.stdev(values) if len(values) > 1 else None
    return {
        "title": ablation.title,
        "question": ablation.question,
        "base": ablation.base,
        "teacher": ablation.teacher,
        "seeds": ablation.seeds,
        "scm_lightning": __version__,
        "variants": variants,
    }


def _scores(file: Path, scores: Sequence[str]) -> dict[str, float]:
    content = read_map(file)
    known = [key for key, each in content.items() if isinstance(each, dict) and "value" in each]
    for score in scores:
        if score not in known:
            raise ValueError(
                f"scores must be keys of metrics.json, got {score}; {file} has {', '.join(known)}"
            )
    try:
        return {score: float(content[score]["value"]) for score in scores}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{file} is damaged: {error}; remove it") from error


def cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table, the same printed and written."""
    variants = results["variants"]
    scores = list(next(iter(variants.values()))["scores"])
    rows = []
    for name, variant in variants.items():
        row = [name]
        for score in scores:
            found = variant["scores"][score]
            values = ", ".join(f"{value:.3g}" for value in found["seeds"].values())
            spread = found["standard_deviation"]
            mean = "-" if found["mean"] is None else f"{found['mean']:.3g}"
            row.append(mean if spread is None else f"{mean} +- {spread:.2g} ({values})")
        rows.append([*row, f"{len(variant['failed'])} of {len(results['seeds'])}"])
    return ["variant", *scores, "failed"], rows


def failures(results: Mapping[str, Any]) -> list[str]:
    """Failures, a line each."""
    return [
        f"{name}, seed {seed}: {line}"
        for name, variant in results["variants"].items()
        for seed, line in variant["failed"].items()
    ]


def legend(results: Mapping[str, Any]) -> str:
    """Legend of the numbers in the table."""
    seeds = ", ".join(map(str, results["seeds"]))
    return f"Mean +- standard deviation over seeds (seeds {seeds}); keys of metrics.json."


def markdown(results: Mapping[str, Any]) -> str:
    """The table as Markdown, with what it is about and what failed."""
    headings, rows = cells(results)
    lines = [f"# {results['title']}", "", results["question"], "", legend(results), ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
    failed = [f"- {line}" for line in failures(results)]
    return "\n".join([*lines, *(["", "Failed:", "", *failed] if failed else [])]) + "\n"


def plot(results: Mapping[str, Any]) -> "Figure":
    """A row of scores over the variants; below it one of curves over time, if there are any."""
    from matplotlib.figure import Figure  # a second of import that no other command needs

    variants = results["variants"]
    scores = list(next(iter(variants.values()))["scores"])
    measured = [curves for variant in variants.values() for curves in variant["curves"].values()]
    curves = [name for name in CURVES if any(name in each for each in measured)]
    rows, columns = 1 + bool(curves), max(len(scores), len(curves))
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    figure.suptitle(results["title"])
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel, score in zip(panels[0], scores, strict=False):
        _draw_score(panel, score, variants)
    for panel, curve in zip(panels[-1], curves, strict=False):
        _draw_curve(panel, curve, variants)
    for panel in panels.flat:
        panel.set_visible(bool(panel.get_title()))
    return figure


def _draw_score(panel: "Axes", score: str, variants: Mapping[str, Any]) -> None:
    """Points for the seeds, beside them mean and standard deviation."""
    everything = []
    for place, variant in enumerate(variants.values()):
        found, color = variant["scores"][score], f"C{place}"
        values = list(found["seeds"].values())
        everything += values
        panel.plot([place - 0.1] * len(values), values, "o", color=color, alpha=0.5)
        if values:
            spread = found["standard_deviation"] or 0.0
            panel.errorbar(place + 0.1, found["mean"], spread, fmt="D", color=color, capsize=4)
    panel.set_xticks(range(len(variants)), list(variants))
    panel.set_title(f"{score}: seeds, mean and standard deviation", fontsize="medium")
    if everything and max(everything) > WIDE * min(everything) > 0.0:
        panel.set_yscale("log")
    elif everything and min(everything) >= 0.0:
        panel.set_ylim(bottom=0.0)


def _draw_curve(panel: "Axes", curve: str, variants: Mapping[str, Any]) -> None:
    """A line and a band per variant, over tan t."""
    for place, (name, variant) in enumerate(variants.items()):
        found = [each for each in variant["curves"].values() if curve in each]
        if not found:
            continue
        columns = list(zip(*(each[curve] for each in found), strict=True))
        middle = [statistics.median(column) for column in columns]
        tan_t, color = found[0]["tan_t"], f"C{place}"
        panel.plot(tan_t, middle, marker=".", color=color, label=name)
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        panel.fill_between(tan_t, low, high, color=color, alpha=0.2, linewidth=0)
    panel.set(xscale="log", yscale="log", xlabel="tan t = sigma / sigma_data")
    panel.set_title(CURVES[curve], fontsize="medium")
    panel.legend()
