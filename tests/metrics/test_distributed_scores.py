# SPDX-License-Identifier: Apache-2.0
"""Scores do not depend on how many processes drew the samples."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_scores import NUM_SAMPLES, WORLD_SIZES, scores

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


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_processes_agree_with_one(together, world_size):
    """Every process has the scores of all samples; counts exactly, values to nine digits."""
    expected = scores(0, 1)
    assert {"fd", "fd_block", "accuracy", "nearest"} <= expected["one"].keys()
    assert expected["one"]["fd"] != expected["other set"]["fd"]
    for rank in range(world_size):
        found = torch.load(together / f"{world_size}.{rank}.pt", weights_only=False)
        assert found.keys() == expected.keys()
        for name, of_set in expected.items():
            assert found[name].keys() == of_set.keys()
            for kind, score in of_set.items():
                assert found[name][kind].value == pytest.approx(score.value, rel=1e-9)
                assert found[name][kind].num_samples == score.num_samples
    assert expected["one"]["fd"].num_samples == NUM_SAMPLES
    assert expected["one"]["fd_block"].num_samples == 20
