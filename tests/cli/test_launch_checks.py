# SPDX-License-Identifier: Apache-2.0
"""More machines than anybody has started, and GPUs that are not there: a line, and no waiting."""

import pytest
import torch
from jsonargparse import Namespace

from scm_lightning.cli.launch_checks import BY_HAND, LAUNCHERS, check_launch

BY_ALL = {"NODE_RANK": "1", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Nobody has started this process."""
    for name in (*set.union(*BY_HAND), *SLURM, *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    assert not any(each.detect() for each in LAUNCHERS)


def options(**trainer):
    fixed = {"num_nodes": 1, "strategy": "auto", "accelerator": "cpu", "plugins": None}
    fixed["devices"] = 1
    return Namespace(trainer=Namespace(**{**fixed, **trainer}))


@pytest.mark.parametrize("left", BY_ALL)
def test_what_is_started_by_hand_needs_all_three_variables(left, monkeypatch):
    for name, value in BY_ALL.items():
        monkeypatch.setenv(name, value)
    check_launch(options(num_nodes=3))
    monkeypatch.delenv(left)
    with pytest.raises(ValueError, match="num_nodes 3 needs a launcher on every machine, got none"):
        check_launch(options(num_nodes=3))


@pytest.mark.parametrize("variables", [SLURM, TORCHRUN])
def test_a_launcher_is_believed(variables, monkeypatch):
    """Lightning compares the number of machines that it has announced."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_launch(options(num_nodes=3))


def test_a_plugin_that_knows_the_machines_is_believed():
    known = "lightning.pytorch.plugins.environments.LightningEnvironment"
    check_launch(options(num_nodes=3, plugins=[Namespace(class_path=known)]))
    other = "lightning.pytorch.plugins.io.TorchCheckpointIO"
    with pytest.raises(ValueError, match="needs a launcher"):
        check_launch(options(num_nodes=3, plugins=[Namespace(class_path=other)]))


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_the_overlay_is_named_where_there_is_no_gpu(accelerator, monkeypatch):
    """Also if the configuration asks for several machines of them."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"add --config configs/overlays/cpu\.yaml after"):
        check_launch(options(accelerator=accelerator, num_nodes=4))


def test_a_dry_run_counts_on_nothing():
    check_launch(Namespace(dry_run=True, **vars(options(accelerator="gpu", num_nodes=4))))
