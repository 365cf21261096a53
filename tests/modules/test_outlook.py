# SPDX-License-Identifier: Apache-2.0
"""Schedules follow the run, and what they come to is said as it begins."""

import re
from functools import partial

import pytest
import torch
from gaussian import PATH
from tiny import loader, mlp, trainer

from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.core import TangentWarmup
from scm_lightning.modules import FlatCosine, InverseSqrt
from scm_lightning.networks import MLP
from scm_lightning.objectives import AlphaFlow, AlphaSchedule, Consistency


def student(warmup, schedule=None, **options):
    network = MLP((3,), 16, 1, 8, **options)
    objective = Consistency(warmup=warmup) if isinstance(warmup, TangentWarmup) else warmup
    return ConsistencyModule(network, path=PATH, objective=objective, lr_schedule=schedule)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            student(TangentWarmup(None), partial(FlatCosine, ramp_steps=0.25)),
            "8 steps: r reaches 1 at step 8; learning rate at most 0.0001, 2e-06 at step 8\n",
        ),
        (student(TangentWarmup(2)), "8 steps: r reaches 1 at step 2; learning rate 0.0001 through"),
        (
            student(AlphaFlow(schedule=AlphaSchedule(0, 0.5)), two_times=True),
            "8 steps: alpha reaches 0 at step 3; learning rate",
        ),
        (
            DiffusionModule(mlp(), path=PATH, lr_schedule=partial(InverseSqrt, ref_steps=0.5)),
            "8 steps: learning rate at most 0.001, 0.00071 at step 8\n",
        ),
    ],
)
def test_what_a_run_comes_to_is_said(module, said, capsys):
    trainer(8).fit(module, loader())
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (student(TangentWarmup()), "r reaches 0.0008 at step 8; .* set warmup.steps of"),
        (
            student(TangentWarmup(0), partial(FlatCosine, total_steps=4)),
            "r reaches 1 at step 0; .*, 2e-06 at step 4; set total_steps of",
        ),
        (student(AlphaFlow(), two_times=True), "alpha reaches 1 at step 0; .*; set end of"),
    ],
)
def test_how_to_mend_a_schedule_of_another_length_is_said(module, said, capsys):
    trainer(8).fit(module, loader())
    assert re.search(f"(?m)^8 steps: .*{said}", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("module", "option"),
    [
        (student(TangentWarmup(0.5)), "warmup.steps"),
        (DiffusionModule(mlp(), path=PATH, lr_schedule=FlatCosine), "total_steps"),
    ],
)
def test_a_share_of_a_run_without_steps_is_refused(module, option):
    with pytest.raises(ValueError, match=f"{option} is .*; set trainer.max_steps, or {option} to"):
        trainer(-1, max_epochs=1, limit_train_batches=2).fit(module, loader())


def test_a_run_that_its_passes_end_is_said_to_end_there(capsys):
    module = student(TangentWarmup(None))
    trainer(8, max_epochs=1, limit_train_batches=5).fit(module, loader())
    said = (
        "5 steps: r reaches 0.62 at step 5; .*; max_epochs ends the run before the 8 of max_steps"
    )
    assert re.search(said, capsys.readouterr().out)


def test_a_continued_run_follows_its_own_number_of_steps(tmp_path, capsys):
    """Gone on with to step 8 of 8, after step 4 of 4: the rates of a run of 8, and r too."""
    seen = {}
    for name, ends in {"whole": [8], "continued": [4, 8]}.items():
        torch.manual_seed(0)
        module, start = student(TangentWarmup(None), FlatCosine), None
        for end in ends:
            fit = trainer(end)
            fit.fit(module, loader(), ckpt_path=start, weights_only=True)
            start = tmp_path / "last.ckpt"
            fit.save_checkpoint(start)
        seen[name] = (fit.optimizers[0].param_groups[0]["lr"], module.objective.at_step(6))
    assert seen["continued"] == seen["whole"]
    assert seen["whole"][1] == {"r": 0.75}
    assert "step 4 of 8: r is 0.5 and reaches 1 at step 8; learning rate is 9" in (
        capsys.readouterr().out
    )
