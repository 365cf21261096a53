# SPDX-License-Identifier: Apache-2.0
"""A loss or gradient that is not finite changes nothing but a counter."""

import json
import math

import pytest
import torch
from gaussian import PATH
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from tiny import loader, mlp, trainer
from torch import nn

from scm_lightning import ConsistencyModule
from scm_lightning.callbacks import BadNumbers
from scm_lightning.callbacks.bad_numbers import FILE, _worst_sample
from scm_lightning.core import TangentWarmup
from scm_lightning.modules import FlatCosine
from scm_lightning.objectives import Consistency

BAD_BATCH = 6
WAYS = ["loss", "sample", "gradient of the network", "gradient of the head"]


class Spoiled(ConsistencyModule):
    """One bad batch, in one of the ways."""

    def __init__(self, way, bad_batches=(BAD_BATCH,)):
        super().__init__(
            mlp(),
            objective=Consistency(warmup=TangentWarmup(9)),
            path=PATH,
            optimizer=lambda groups: torch.optim.RAdam(groups, lr=0.01, weight_decay=0.1),
            lr_schedule=lambda optimizer: FlatCosine(optimizer, 9, 2),
        )
        self.way, self.bad_batches = way, bad_batches

    def training_step(self, batch, batch_idx):
        is_bad = batch_idx in self.bad_batches
        if is_bad and self.way == "sample":
            batch.x0[2, 1] = math.inf
        outputs = super().training_step(batch, batch_idx)
        if is_bad and self.way == "loss":
            outputs["loss"] = outputs["loss"] + math.inf
        return outputs

    def on_after_backward(self):
        batch_idx = self.trainer.fit_loop.epoch_loop.batch_idx
        owner = {"gradient of the network": self.student, "gradient of the head": None}
        if batch_idx in self.bad_batches and self.way in owner:
            parameters = list((owner[self.way] or self.objective.weighting_head).parameters())
            parameters[-1].grad.view(-1)[0] = -math.inf


class Watch(Callback):
    """Everything that a step may change, before and after every batch."""

    def __init__(self):
        self.before, self.after = {}, {}

    def state(self, run, module):
        state = {f"module.{k}": v.clone() for k, v in module.state_dict().items()}
        for number, moments in run.optimizers[0].state_dict()["state"].items():
            state |= {f"moments.{number}.{k}": v.clone() for k, v in moments.items()}
        schedule = run.lr_scheduler_configs[0].scheduler
        counters = [run.global_step, schedule.last_epoch, *schedule.get_last_lr()]
        return state | {"counters": torch.tensor(counters, dtype=torch.float64)}

    def on_train_batch_start(self, run, module, batch, batch_idx):
        self.before[batch_idx] = self.state(run, module)

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        self.after[batch_idx] = self.state(run, module)


def changed(one, other):
    assert one.keys() == other.keys()
    return sum(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("way", WAYS)
def test_a_bad_step_changes_nothing(tmp_path, way, clip):
    """Weights, averages, moments, schedule, counters: bit by bit. The steps around it are made."""
    watch, guard, module = Watch(), BadNumbers(), Spoiled(way)
    fit = trainer(9, callbacks=[guard, watch], gradient_clip_val=clip, default_root_dir=tmp_path)
    fit.fit(module, loader())
    assert changed(watch.before[BAD_BATCH], watch.after[BAD_BATCH]) == 0
    for other in (BAD_BATCH - 1, BAD_BATCH + 1):
        assert changed(watch.before[other], watch.after[other]) > 20
    assert fit.global_step == 9
    assert len(watch.after) == 10  # nine steps and the bad one
    assert int(module.ema.num_steps) == 9
    assert guard.bad_steps == 1


def test_a_step_of_several_batches_is_left_out_whole(tmp_path):
    """The first of three is bad; the report names its time, not the last one's."""
    watch, guard = Watch(), BadNumbers()
    fit = trainer(5, callbacks=[guard, watch], accumulate_grad_batches=3, default_root_dir=tmp_path)
    fit.fit(Spoiled("sample"), loader())
    assert changed(watch.before[6], watch.after[8]) == 0
    assert changed(watch.before[9], watch.after[11]) > 20
    (line,) = (tmp_path / FILE).read_text().splitlines()
    report = json.loads(line)
    assert report["step"] == 3
    assert report["loss"] in ("nan", "inf")
    assert 0.0 < report["t"] < math.pi / 2


def test_too_many_in_a_row_stop_the_run(tmp_path):
    """Two, a good one, then three: the third of these stops it."""
    module = Spoiled("sample", bad_batches=(1, 2, 4, 5, 6, 7))
    guard = BadNumbers(max_in_a_row=3)
    with pytest.raises(ValueError, match="step 3 failed 3 times in a row, at t from 0") as error:
        trainer(9, callbacks=[guard], default_root_dir=tmp_path).fit(module, loader())
    assert str(tmp_path / FILE) in str(error.value)
    assert len((tmp_path / FILE).read_text().splitlines()) == guard.bad_steps == 5
    assert all(each.isfinite().all() for each in module.state_dict().values())


def test_bad_steps_are_logged_from_the_first_on(tmp_path):
    log = CSVLogger(tmp_path, name="", version="")
    fit = trainer(
        9, callbacks=[BadNumbers()], logger=log, default_root_dir=tmp_path, log_every_n_steps=1
    )
    fit.fit(Spoiled("loss"), loader())
    header, *rows = (
        line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()
    )
    place = header.index("bad_steps")
    assert [row[place] for row in rows if row[place]] == ["0", "1"]


class PassingOver(LightningModule):
    """Somebody's module, which passes over its first batch and fails in its third."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        factor = math.nan if batch_idx == 2 else 1.0
        return factor * self.linear(batch.x0).square().mean() if batch_idx else None

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def test_a_module_may_pass_over_a_batch(tmp_path):
    """Lightning allows it: there is no loss then, and nothing bad."""
    guard, module = BadNumbers(), PassingOver()
    trainer(3, callbacks=[guard], default_root_dir=tmp_path).fit(module, loader())
    assert guard.bad_steps == 1
    assert module.linear.weight.isfinite().all()


def test_the_worst_sample_by_size_by_tangent_and_by_loss():
    """In the second batch; its key, its number, or nothing."""
    calm = [torch.rand(3), torch.ones(3), torch.ones(3), torch.full((3,), -1)]
    t, numbers = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([70, 71, 72, 73])
    loss, finite = torch.tensor([1.0, -9.0, 2.0, 3.0]), torch.ones(4)
    spoiled = torch.tensor([1.0, 1.0, math.nan, 1.0])
    keys = lambda numbers: [f"00002.tar/{each}" for each in numbers.tolist()]  # noqa: E731
    for norm, expected in ((finite, 71), (spoiled, 72)):
        found = _worst_sample([calm, [t, loss, norm, numbers]], None)
        assert found["sample"] == expected
        assert found["t"] == pytest.approx((expected - 69) / 10)
    loss = torch.tensor([math.inf, -9.0, 2.0, 3.0])
    assert _worst_sample([calm, [t, loss, spoiled, numbers]], keys) == {
        "t": pytest.approx(0.1),
        "loss": "inf",
        "sample": "00002.tar/70",
        "badness": math.inf,
    }
    assert _worst_sample([calm], keys)["sample"] is None
    assert _worst_sample([], keys)["sample"] is None


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("bad", [(3, 1, 54), (11, 0, 224)]),
        ("bad sharded", [(1, 1, 4), (4, 0, 94)]),
    ],
)
def test_processes_leave_out_the_same_steps(guarded, name, places):
    """A sample that one of two has seen; the report names it, the run goes on to its end."""
    folder, results = guarded
    found = results[name]["first"]
    assert found["codes"] == [0, 0], found["log"]
    assert [each["step"] for each in found["stopped"]] == [12, 12]
    reports = [json.loads(line) for line in (folder / name / FILE).read_text().splitlines()]
    assert [(each["step"], each["process"], each["sample"]) for each in reports] == places
    assert all(each["loss"] == "nan" for each in reports)
    end = torch.load(folder / name / "end.0")["state"]
    assert all(each.isfinite().all() for each in end.values())


def test_all_processes_give_up_together(guarded):
    found = guarded[1]["always bad"]["first"]
    assert found["codes"] == [2, 2]
    assert found["log"].count("error: loss and gradients must be finite, but step 3") == 1


def test_the_count_goes_on_with_the_run():
    guard = BadNumbers()
    guard.load_state_dict({"bad_steps": 4})
    assert guard.state_dict() == {"bad_steps": 4}


def test_a_run_that_may_never_fail_is_refused():
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        BadNumbers(max_in_a_row=0)
