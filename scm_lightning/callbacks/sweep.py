# SPDX-License-Identifier: Apache-2.0
"""Results of a sweep over samplers in `scm test`: `sweep.png`, `sweep.json` and the best row.

The distance is drawn against the first of t_mid, guidance and number of steps that takes several
values, with a line for every combination of the others. Trap: the best of many rows is flattered by
having been chosen; another `sample_seed` tells by how much.
"""

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule

from scm_lightning.metrics import Score
from scm_lightning.modules import ConsistencyModule
from scm_lightning.sampling import SweepPoint
from scm_lightning.storage.side_files import write_result
from scm_lightning.whole_files import write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {"t_mid": "t_mid, radians", "guidance": "guidance scale", "num_steps": "steps"}
"""Dimensions that the distance is drawn against, first choice first, in words."""
FILE = "sweep.json"
FLOOR = "floor"
STYLES = ("-", ":", "-.")
"""Styles of ten lines each; the floor is dashed."""
Scores = Mapping[str, Mapping[str, Score]]


def report_sweep(
    folder: Path,
    pl_module: LightningModule,
    scores: Scores,
    nfe: Mapping[str, int],
    distance: str,
) -> list[str]:
    """Draw and write a module's sweep; nothing, if it has none.

    Args:
        folder: folder of the run.
        pl_module: the module that was sampled.
        scores: by row, then by kind; also of rows that are not of the sweep.
        nfe: network calls per sample, by row.
        distance: kind of score that decides, such as `fid`.

    Returns:
        Lines to print: the best row, how to sample as it does, and where the others are.
    """
    if not isinstance(pl_module, ConsistencyModule) or not pl_module.sweep_points():
        return []
    points = pl_module.sweep_points()
    best = best_row(points, scores, distance)
    options = sampling_options(pl_module, points[best])
    content = {
        "best": best,
        "chosen_by": distance,
        "options": options,
        "rows": {row: _entry(point, scores[row], nfe[row]) for row, point in points.items()},
    }
    write_result(folder / FILE, json.dumps(content, indent=2) + "\n")
    is_drawn = write_picture(folder / "sweep.png", lambda: sweep_plot(points, scores, distance))
    drawn = f"drawn in {folder / 'sweep.png'}, " if is_drawn else ""
    score = scores[best][distance]
    return [
        f"best: {best}, {distance} {score.value:.3f} over {score.num_samples:,} samples; "
        "confirm it with another --data.init_args.sample_seed",
        f"to sample so: {shlex.join(_words(options))}",
        f"sweep {drawn}written to {folder / FILE}",
    ]


def words_of_best(folder: Path) -> list[str]:
    """Options of the command line that sample as the best row of the last sweep.

    Args:
        folder: folder of the run; without a `sweep.json` there are none.
    """
    file = folder / FILE
    return _words(json.loads(file.read_text())["options"]) if file.is_file() else []


def _words(options: Mapping[str, Any]) -> list[str]:
    pairs = ((key, json.dumps(x).replace(" ", "")) for key, x in options.items())
    return [f"--model.init_args.sampling.{key}={value}" for key, value in pairs]


def sampling_options(module: ConsistencyModule, point: SweepPoint) -> dict[str, Any]:
    """Options of a module's `sampling` that make a point its own way to sample.

    Another average than the first is reached by a sweep of one point, in `scm test`.

    Args:
        module: the module.
        point: a point of its sweep.
    """
    if point.average:
        values = {"t_mid": point.t_mid, "guidance": point.guidance, "ema": point.average}
        of_sweep = {f"sweep.{key}": [] if x is None else [x] for key, x in values.items()}
        return {"sweep.num_steps": [point.num_steps], **of_sweep}
    options: dict[str, Any] = {"num_steps": [point.num_steps]}
    if point.t_mid is not None:
        times = module.objective.steps.times(point.num_steps, point.t_mid, (), module.path)
        options["intermediate_times"] = [float(f"{time:.6g}") for time in times[1:]]
    return options if point.guidance is None else {**options, "guidance": point.guidance}


def best_row(points: Mapping[str, SweepPoint], scores: Scores, distance: str) -> str:
    """The row of a sweep that is lowest in a kind of score.

    Args:
        points: points of the sweep, by row.
        scores: by row, then by kind.
        distance: the kind.
    """
    values = {row: scores[row][distance].value for row in points}
    return min(values, key=lambda row: (math.isnan(values[row]), values[row]))


def sweep_plot(points: Mapping[str, SweepPoint], scores: Scores, distance: str) -> "Figure":
    """Distances of a sweep, over all samples and in blocks; the best row has a star.

    Args:
        points: points of the sweep, by row.
        scores: by row, then by kind; the floor is drawn where it was measured over as many samples.
        distance: kind of score that decides; that in blocks has `_block` behind it.
    """
    from matplotlib.figure import Figure  # a second of import that no other command needs

    axis, best = _axis(points), best_row(points, scores, distance)
    both = (distance, f"{distance}_block")
    kinds = [kind for kind in both if all(kind in scores[row] for row in points)]
    figure = Figure(figsize=(6.0 * len(kinds), 4.8), layout="constrained")
    figure.suptitle(f"best: {best}")
    for panel, kind in zip(figure.subplots(1, len(kinds), squeeze=False).flat, kinds, strict=True):
        _draw_lines(panel, axis, points, {row: scores[row][kind].value for row in points})
        num_samples = scores[best][kind].num_samples
        floor = scores.get(FLOOR, {}).get(kind)
        if floor is not None and floor.num_samples == num_samples:
            panel.axhline(floor.value, color="black", linestyle="--", label="held-out real")
        panel.set_xlim(panel.get_xlim())  # a star at the edge would move it
        at = getattr(points[best], axis)
        where = panel.get_xlim()[1] if at is None else at
        panel.plot([where], [scores[best][kind].value], "*", color="black", ms=14, clip_on=False)
        if axis == "num_steps":
            panel.set_xticks(sorted({point.num_steps for point in points.values()}))
        panel.set_xlabel(AXES[axis])
        panel.set_ylabel(f"{kind}, {num_samples:,} samples")
    drawn = [panel.get_legend_handles_labels() for panel in figure.axes]
    legend = {label: handle for pair in drawn for handle, label in zip(*pair, strict=True)}
    if legend:
        figure.legend(legend.values(), legend.keys(), loc="outside right upper", fontsize="small")
    return figure


def _draw_lines(
    panel: "Axes", axis: str, points: Mapping[str, SweepPoint], values: Mapping[str, float]
) -> None:
    """A line per combination of the other dimensions; a horizontal one where the axis has none."""
    lines: dict[str, list[tuple[float | None, float]]] = {}
    for row, point in points.items():
        # t_mid is the axis, or the same for all that have one.
        words = [word for key, word in point.words().items() if key not in (axis, "t_mid")]
        lines.setdefault(" ".join(words), []).append((getattr(point, axis), values[row]))
    for place, (label, line) in enumerate(lines.items()):
        color, style = f"C{place % 10}", STYLES[place // 10 % len(STYLES)]
        if line[0][0] is None:
            panel.axhline(line[0][1], color=color, linestyle=style, label=label)
        else:
            xs, ys = zip(*sorted(line), strict=True)
            panel.plot(xs, ys, marker=".", color=color, linestyle=style, label=label or None)


def _axis(points: Mapping[str, SweepPoint]) -> str:
    """The first dimension that takes several values, of `AXES`; the last, if none does."""
    for axis in AXES:
        if len({getattr(point, axis) for point in points.values()} - {None}) > 1:
            return axis
    return axis


def _entry(point: SweepPoint, of_row: Mapping[str, Score], calls: int) -> dict[str, Any]:
    scores = {kind: score._asdict() for kind, score in of_row.items()}
    return {**point._asdict(), "nfe": calls, "scores": scores}
