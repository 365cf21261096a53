# SPDX-License-Identifier: Apache-2.0
"""Runs that version 0.3.0 left at step 20 go on as that version would have gone on.

The folders, and how they were made: tests/data/run_0.3.0/README.md.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from continued_run import run_python, weights_hash
from safetensors.torch import load_file

from scm_lightning.storage import SavedRun

HERE = Path(__file__)
FIXTURE = HERE.parents[1] / "data" / "run_0.3.0"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
FURTHER_OPTIONS = {
    "one_file": [],
    "parts": [
        *("--trainer.strategy", "fsdp2_sharded", "--trainer.devices", "2"),
        *("--data.init_args.batch_size", "4"),
    ],
}
NUM_STEPS = 20
TOLERANCE = NUM_STEPS * 2.0**-23
"""Weights lie within 4, where float32 has steps of 2^-22: each of the 20 updates is rounded by half
of one. Measured between the processors' code paths: 6e-8. An update moves a weight by 1.5e-4."""


@pytest.fixture(scope="module")
def probed():
    """What this machine makes of plain torch, in the environment of the runs."""
    found = json.loads(run_python(HERE.with_name("continued_run.py")))
    if found["draws"] != EXPECTED["probe"]["draws"]:
        pytest.skip("this build of torch draws other random numbers than the one of the fixture")
    return found


@pytest.fixture(scope="module", params=sorted(FURTHER_OPTIONS))
def continued(request, probed, tmp_path_factory):
    """Name of a run, its weights at step 40."""
    name = request.param
    copy = shutil.copytree(FIXTURE, tmp_path_factory.mktemp(name) / "run", symlinks=True)
    place = ["--trainer.default_root_dir", name]
    command = ["fit", "--config", "digits.yaml", "--trainer.max_steps", 2 * NUM_STEPS, *place]
    printed = run_python("-m", "scm_lightning", *command, *FURTHER_OPTIONS[name], folder=copy)
    assert "step 20" in " ".join(printed.split())
    checkpoint = SavedRun.read(copy / name / "checkpoints" / "last.ckpt").content
    assert checkpoint["global_step"] == 2 * NUM_STEPS
    # The head was the module's own then.
    state = {key.removeprefix("objective."): x for key, x in checkpoint["state_dict"].items()}
    return name, state


def test_the_weights_are_those_of_0_3_0(continued):
    """On any processor, up to rounding."""
    name, state = continued
    expected = load_file(FIXTURE / f"{name}.step_40.safetensors")
    begun = SavedRun.read(FIXTURE / name / "checkpoints" / "last.ckpt").content["state_dict"]
    assert state.keys() == expected.keys()
    for key, x in expected.items():
        assert (x - begun[key]).abs().max() > 100 * TOLERANCE, f"{key} did not move"
        torch.testing.assert_close(state[key], x, rtol=0, atol=TOLERANCE, msg=key)


def test_the_bits_are_those_of_0_3_0(continued, probed):
    """On a processor that computes in plain torch what the one of the fixture did."""
    name, state = continued
    if probed["arithmetic"] != EXPECTED["probe"]["arithmetic"]:
        pytest.skip("this machine rounds plain torch otherwise: the weights are compared instead")
    assert weights_hash(state) == EXPECTED[name]
