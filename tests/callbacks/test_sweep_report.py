# SPDX-License-Identifier: Apache-2.0
"""What is drawn and written of a sweep, from scores made up here."""

import json
import math

import numpy as np
import pytest
from gaussian import PATH
from PIL import Image
from tiny import mlp

from scm_lightning import ConsistencyModule
from scm_lightning.callbacks.sweep import best_row, report_sweep, sweep_plot
from scm_lightning.metrics import Score
from scm_lightning.sampling import FewStepSampling, SamplerSweep, SweepPoint

TIMES = (0.6, 0.9, 1.2)
FLOOR = {"floor": {"fd": Score(0.2, 360), "fd_block": Score(0.2, 360)}}


def scored(points, values):
    """Scores of the rows, and of one that is not of the sweep."""
    rows = {
        row: {"fd": Score(value, 2000), "fd_block": Score(2 * value, 360)}
        for row, value in zip(points, values, strict=True)
    }
    return {**FLOOR, "teacher": rows[next(iter(points))], **rows}


def lines(panel):
    """Points of every line, by label; the star goes by its marker."""
    return {
        "star" if line.get_marker() == "*" else line.get_label(): np.array(line.get_xydata())
        for line in panel.get_lines()
    }


def test_distance_is_drawn_against_t_mid():
    """One line per other combination; one step is horizontal; the floor where counts agree."""
    points = SamplerSweep((1, 2, 4), TIMES).points([])
    scores = scored(points, [0.5, 0.4, 0.3, 0.6, 0.45, 0.35, 0.7])
    whole, block = sweep_plot(points, scores, "fd").axes
    found = lines(whole)
    assert set(found) == {"1_step", "2_step", "4_step", "star"}
    assert found["1_step"][:, 1].tolist() == [0.5, 0.5]
    assert found["2_step"].tolist() == [[0.6, 0.4], [0.9, 0.3], [1.2, 0.6]]
    assert found["star"].tolist() == [[0.9, 0.3]]
    assert lines(block)["held-out real"][:, 1].tolist() == [0.2, 0.2]
    assert lines(block)["star"].tolist() == [[0.9, 0.6]]
    assert (whole.get_ylabel(), whole.get_xlabel()) == ("fd, 2,000 samples", "t_mid, radians")


def test_without_several_times_it_is_drawn_against_guidance_then_steps():
    guided = SamplerSweep((1, 2), (0.9,), (1.5, 1.0)).points([])
    found = lines(sweep_plot(guided, scored(guided, [0.5, 0.4, 0.3, 0.2]), "fd").axes[0])
    assert found["1_step"].tolist() == [[1.0, 0.4], [1.5, 0.5]]
    assert found["2_step"].tolist() == [[1.0, 0.2], [1.5, 0.3]]
    steps = SamplerSweep((1, 2), (0.9,), ema="all").points(["0.05", "0.1"])
    found = lines(sweep_plot(steps, scored(steps, [0.5, 0.4, 0.3, 0.2]), "fd").axes[0])
    assert found["ema=0.05"].tolist() == [[1, 0.5], [2, 0.3]]
    assert found["ema=0.1"].tolist() == [[1, 0.4], [2, 0.2]]


def test_the_best_row_is_the_lowest_that_is_a_number():
    points = {row: SweepPoint(place) for place, row in enumerate("abc", start=1)}
    assert best_row(points, scored(points, [math.nan, 0.2, 0.1]), "fd") == "c"


def test_sets_smaller_than_a_block_have_one_panel():
    points = SamplerSweep((1, 2)).points([])
    scores = {row: {"fid": Score(place, 21)} for place, row in enumerate(points)}
    (panel,) = sweep_plot(points, scores, "fid").axes
    assert panel.get_ylabel() == "fid, 21 samples"


def test_a_report_is_written_with_the_options_of_the_best(tmp_path):
    sweep = SamplerSweep((1, 2), TIMES)
    module = ConsistencyModule(mlp(), path=PATH, sampling=FewStepSampling(sweep=sweep))
    points = module.sweep_points()
    scores = scored(points, [0.5, 0.4, 0.3, 0.6])
    nfe = {row: point.num_steps for row, point in points.items()}
    best, how, _ = report_sweep(tmp_path, module, scores, nfe, "fd")
    assert best.startswith("best: 2_step t_mid=0.9, fd 0.300 over 2,000 samples")
    assert how.endswith("num_steps=[2]' '--model.init_args.sampling.intermediate_times=[0.9]'")
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["options"] == {"num_steps": [2], "intermediate_times": [0.9]}
    assert (content["best"], content["chosen_by"]) == ("2_step t_mid=0.9", "fd")
    assert list(content["rows"]) == list(points)
    row = content["rows"]["2_step t_mid=1.2"]
    assert (row["t_mid"], row["num_steps"], row["nfe"]) == (1.2, 2, 2)
    assert row["scores"]["fd"] == {"value": 0.6, "num_samples": 2000}
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size[0] == pytest.approx(2 * 6 * 120, abs=2)


def test_without_a_sweep_nothing_is_written(tmp_path):
    module = ConsistencyModule(mlp(), path=PATH)
    assert report_sweep(tmp_path, module, FLOOR, {}, "fd") == []
    assert not list(tmp_path.iterdir())
