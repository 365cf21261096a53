# SPDX-License-Identifier: Apache-2.0
"""A resumed run uses the options that it is given, and goes on with the state of its checkpoint."""

import copy
from functools import partial

import pytest
import torch
from gaussian import PATH
from lightning.pytorch import Callback
from tiny import loader, mlp, trainer
from torch import optim
from torch.optim import lr_scheduler

from scm_lightning.modules import DiffusionModule, FlatCosine, InverseSqrt

SAVED, END = 6, 11
RADAM = partial(optim.RAdam, lr=1e-3, betas=(0.9, 0.99))
CYCLE = partial(lr_scheduler.OneCycleLR, max_lr=2e-3, total_steps=30)
COSINE = partial(FlatCosine, total_steps=20, ramp_steps=4, flat_share=0.2)


class Watch(Callback):
    """Rates and options of the first group in every step, and the state as training starts."""

    def __init__(self):
        self.rates, self.groups, self.states = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        (optimizer,) = trainer.optimizers
        group = {name: x for name, x in optimizer.param_groups[0].items() if name != "params"}
        self.rates.append(group["lr"])
        self.groups.append(copy.deepcopy(group))
        self.states.append(copy.deepcopy(optimizer.state_dict()["state"]))


def train(optimizer, schedule, steps, checkpoint=None, save_to=None):
    """A module after some steps, and what was seen on the way."""
    torch.manual_seed(0)
    module = DiffusionModule(mlp(), path=PATH, optimizer=optimizer, lr_schedule=schedule)
    watch = Watch()
    runner = trainer(steps, callbacks=[watch])
    runner.fit(module, loader(), ckpt_path=checkpoint, weights_only=True)
    if save_to is not None:
        runner.save_checkpoint(save_to)
    return module, watch


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints after six steps: with RAdam and a schedule, and without one."""
    folder = tmp_path_factory.mktemp("saved")
    files = {}
    for name, optimizer, schedule in (
        ("scheduled", RADAM, COSINE),
        ("constant", RADAM, None),
        ("adam", partial(optim.Adam, lr=1e-3), None),
        ("sgd", partial(optim.SGD, lr=1e-3, momentum=0.9), None),
        (
            "cycle",
            partial(optim.Adam, lr=1e-3),
            partial(lr_scheduler.OneCycleLR, max_lr=2e-3, total_steps=30),
        ),
    ):
        files[name] = folder / f"{name}.ckpt"
        train(optimizer, schedule, SAVED, save_to=files[name])
    return files


def rates_of(optimizer, schedule, steps):
    """Rates of a schedule that was there from the first step on."""
    made = optimizer([torch.nn.Parameter(torch.zeros(2))])
    stepped, rates = schedule(made), []
    for _ in range(steps):
        rates.append(made.param_groups[0]["lr"])
        made.step()
        stepped.step()
    return rates


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr": 5e-3}, {"lr": 5e-3}),
        ({"betas": (0.8, 0.95)}, {"betas": (0.8, 0.95)}),
        ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
        ({"eps": 1e-6}, {"eps": 1e-6}),
        ({"decoupled_weight_decay": True}, {"decoupled_weight_decay": True}),
        ({"foreach": False}, {"foreach": False}),
    ],
)
def test_options_of_the_optimizer(saved, options, expected):
    """Are those given now; its averages go on."""
    _, seen = train(partial(RADAM, **options), None, END, saved["constant"])
    _, before = train(RADAM, None, END, saved["constant"])
    assert len(seen.groups) == END - SAVED
    for group in seen.groups:
        assert group == {**before.groups[0], **expected}
    for name, state in before.states[0].items():
        for key, x in state.items():
            assert torch.equal(seen.states[0][name][key], x)
    assert before.states[0], "there is something to go on with"


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        (RADAM, COSINE),
        (partial(RADAM, lr=5e-3), COSINE),
        (RADAM, partial(COSINE, total_steps=13)),
        (RADAM, partial(COSINE, flat_share=0.0, last_factor=0.5)),
        (RADAM, partial(InverseSqrt, ref_steps=2, ramp_steps=3)),
        (RADAM, partial(lr_scheduler.CosineAnnealingLR, T_max=15)),
        (RADAM, partial(lr_scheduler.MultiStepLR, milestones=[4, 8], gamma=0.3)),
        (RADAM, partial(lr_scheduler.ExponentialLR, gamma=0.9)),
    ],
)
@pytest.mark.parametrize("name", ["scheduled", "constant"])
def test_a_schedule_goes_on_at_its_position(saved, name, optimizer, schedule):
    """Another rate, other options, another schedule, or one where there was none before."""
    _, seen = train(optimizer, schedule, END, saved[name])
    assert seen.rates == rates_of(optimizer, schedule, END)[SAVED:]


def test_a_schedule_that_is_taken_away(saved):
    _, seen = train(RADAM, None, END, saved["scheduled"])
    assert seen.rates == [1e-3] * (END - SAVED)
    assert "initial_lr" not in seen.groups[0]


def test_a_schedule_of_more_than_the_rate(saved):
    """OneCycleLR keeps limits in the groups and moves the betas, too."""
    cycle = partial(lr_scheduler.OneCycleLR, max_lr=6e-3, total_steps=40)
    adam = partial(optim.Adam, lr=1e-3)
    _, seen = train(adam, cycle, END, saved["cycle"])
    made = adam([torch.nn.Parameter(torch.zeros(2))])
    stepped = cycle(made)
    for step in range(END):
        if step >= SAVED:
            group = {name: x for name, x in made.param_groups[0].items() if name != "params"}
            assert seen.groups[step - SAVED] == group
        made.step()
        stepped.step()


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        ("constant", partial(optim.Adam, lr=1e-3), "was torch.optim.radam.RAdam and is"),
        ("constant", partial(optim.SGD, lr=1e-3, momentum=0.9), "was torch.optim.radam.RAdam and"),
        ("adam", partial(optim.AdamW, lr=1e-3), "was torch.optim.adam.Adam and is"),
        ("sgd", partial(optim.Adam, lr=1e-3), "was torch.optim.sgd.SGD and is"),
        ("adam", partial(optim.Adam, lr=1e-3, amsgrad=True), "ask for max_exp_avg_sq"),
    ],
)
def test_another_optimizer_begins_anew_and_says_so(saved, caplog, before, now, reason):
    caplog.set_level("INFO")
    _, seen = train(now, None, END, saved[before])
    assert seen.states[0] == {}
    assert seen.states[-1] != {}
    told = [each.getMessage() for each in caplog.records]
    lines = [each for each in told if "start again from zero" in each]
    assert len(lines) == 1
    assert reason in lines[0]


def test_a_checkpoint_that_does_not_name_its_optimizer(saved, tmp_path, caplog):
    """Version 0.3.0 did not: the names of the options tell one from another."""
    caplog.set_level("INFO")
    content = torch.load(saved["constant"], weights_only=True)
    del content["scm_lightning"]["optimizers"]
    torch.save(content, tmp_path / "old.ckpt")
    _, same = train(partial(RADAM, lr=5e-3), None, END, tmp_path / "old.ckpt")
    assert same.rates == [5e-3] * (END - SAVED)
    assert same.states[0]
    assert "start again from zero" not in caplog.text
    _, other = train(partial(optim.Adam, lr=1e-3), None, END, tmp_path / "old.ckpt")
    assert not other.states[0]
    assert "start again from zero" in caplog.text


def test_unchanged_options_change_no_bit(saved):
    """Rates and state; of weights see the runs of the command line."""
    _, whole = train(RADAM, COSINE, END)
    _, parts = train(RADAM, COSINE, END, saved["scheduled"])
    assert parts.groups == whole.groups[SAVED:]
    for name, state in whole.states[SAVED].items():
        for key, x in state.items():
            assert torch.equal(parts.states[0][name][key], x)
