# SPDX-License-Identifier: Apache-2.0
"""Scores do not depend on how many processes drew the samples, nor on who has how many."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_scores import NUM_SAMPLES, WORLD_SIZES, image_metrics, scores

PROGRAM = Path(__file__).with_name("distributed_scores.py")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Folder of what two processes found, and four."""
    folder = tmp_path_factory.mktemp("scores")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", PROGRAM, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def found_by(folder, world_size, rank):
    return torch.load(folder / f"{world_size}.{rank}.pt", weights_only=False)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_scores_in_the_first_process_are_those_of_one(together, world_size):
    """Values and counts to the bit: they are computed of the same samples in the same order."""
    expected = scores(0, 1)
    assert {"fd", "fd_block", "accuracy", "nearest"} <= expected["one"].keys()
    assert expected["one"]["fd"] != expected["other set"]["fd"]
    assert expected["one"]["fd"].num_samples == NUM_SAMPLES
    assert expected["one"]["fd_block"].num_samples == 20
    assert found_by(together, world_size, 0)["scores"] == expected
    for rank in range(1, world_size):
        assert not any(found_by(together, world_size, rank)["scores"].values())


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_metrics_of_all_processes_are_those_of_one(together, world_size):
    """Of kept features to the bit; a Frechet distance to the rounding of sums near 1,000."""
    expected = image_metrics(0, 1)
    for rank in range(world_size):
        found = found_by(together, world_size, rank)["metrics"]
        assert found.pop("fd") == pytest.approx(expected["fd"], rel=1e-11)
        assert found == {name: value for name, value in expected.items() if name != "fd"}
