# SPDX-License-Identifier: Apache-2.0
"""Real signals to real runs: where they stop, what they leave, and how they go on."""

import os
import random
import signal
import sys

import pytest
import torch
from gaussian import PATH
from guarded_runs import NUM_STEPS, PHASES, do_all
from tiny import loader, mlp, trainer

from scm_lightning import DiffusionModule
from scm_lightning.callbacks import Checkpoints, StopSignals
from scm_lightning.callbacks.stop_signals import Stopped

CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 75}
STOPPED = ["term", "preempted", "interrupt", "term twice", "sharded"]
KINDS = [("SIGTERM", 1), ("SIGUSR1", 1), ("SIGINT", 1), ("SIGTERM", 2)]
TARGETS = ["rank 0", "rank 1", "all", "each"]


def assert_stopped_well(found):
    """All processes at one step, which is saved, with the signal's code; nothing is left."""
    first, job = found["first"], found["job"]
    assert first["codes"] == [CODES[job["signal"]]] * 2, first["log"]
    (step,) = {each["step"] for each in first["stopped"]}
    assert first["saved"] == (step or None)
    assert step < NUM_STEPS
    assert first["left"] == 0
    assert f"stopped by {job['signal']} after step {step}" in first["log"]


def assert_went_on(folder, name, found):
    """The weights at the end are those of the run that nobody stopped, bit by bit."""
    assert found["resumed"]["codes"] == [0, 0], found["resumed"]["log"]
    for rank in range(2):
        ends = [torch.load(folder / each / f"end.{rank}") for each in ("unbroken", name)]
        assert ends[0]["step"] == ends[1]["step"] == NUM_STEPS
        for key, value in ends[0]["state"].items():
            torch.testing.assert_close(ends[1]["state"][key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("name", STOPPED)
def test_all_processes_stop_at_one_step(guarded, name):
    assert_stopped_well(guarded[1][name])


def test_a_signal_to_one_process_alone_reaches_it_alone(guarded):
    """Lightning's handler hangs here."""
    stopped = guarded[1]["term"]["first"]["stopped"]
    assert [each["received"] for each in stopped] == [[], [signal.SIGTERM]]


def test_a_validation_is_cut_short(guarded):
    found = guarded[1]["preempted"]["first"]
    assert [each["step"] for each in found["stopped"]] == [4, 4]


def test_a_stopped_run_goes_on_as_if_it_had_not(guarded):
    folder, results = guarded
    assert_went_on(folder, "term", results["term"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_forty_signals(tmp_path):
    """Every kind to every target, at random moments of all phases."""
    rng, jobs = random.Random(0), {"unbroken": {}}
    for number in range(40):
        signum, times = KINDS[number % 4]
        places = {"to": TARGETS[number // 4 % 4], "phase": rng.choice(PHASES), "seed": number}
        jobs[f"run{number}"] = {"signal": signum, "times": times, "resume": True, **places}
    results = do_all(jobs, tmp_path)
    for name, found in results.items():
        if name != "unbroken":
            print(name, found["job"], found["first"]["stopped"], found["first"]["seconds"])
            assert_stopped_well(found)
            assert_went_on(tmp_path, name, found)


class Signals(DiffusionModule):
    """Sends signals to its own process in its third step."""

    def __init__(self, *sent):
        super().__init__(mlp(), PATH)
        self.sent = sent

    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            assert getattr(signal.getsignal(signal.SIGTERM), "__func__", None)
            for signum in self.sent:
                os.kill(os.getpid(), signum)
        return super().training_step(batch, batch_idx)


def fit(folder, *sent, **options):
    stop = StopSignals(**options)
    callbacks = [stop, Checkpoints(str(folder), 100)]
    trainer(6, callbacks=callbacks, enable_checkpointing=True).fit(Signals(*sent), loader())


@pytest.fixture
def handlers():
    """Handlers as they were, which a process that is about to end does not restore."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield before
    for signum, handler in before.items():
        signal.signal(signum, handler)
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([signal.SIGINT, signal.SIGTERM], 143),  # the larger number wins
        ([signal.SIGTERM] * 5, 143),
        ([signal.SIGINT] * 2, 130),
        ([signal.SIGUSR2], 75),
    ],
)
def test_one_process_saves_and_says_which_signal(handlers, tmp_path, capsys, sent, code):
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, *sent, preemption_signal="SIGUSR2")
    assert stopped.value.code == code
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert f"after step 3; saved {tmp_path / 'last.ckpt'}" in capsys.readouterr().err


def test_a_third_interrupt_quits_at_once(tmp_path):
    if (pid := os.fork()) == 0:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            fit(tmp_path, *[signal.SIGINT] * 3)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert not (tmp_path / "last.ckpt").exists()


def test_handlers_are_handed_back(handlers, tmp_path):
    """After a run to its end, and after one that fails."""
    fit(tmp_path)
    assert {each: signal.getsignal(each) for each in handlers} == handlers
    with pytest.raises(OSError, match="Invalid argument"):
        fit(tmp_path, 9999)
    assert {each: signal.getsignal(each) for each in handlers} == handlers


def test_a_signal_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="name of a signal, such as SIGUSR1, got USR1"):
        StopSignals(preemption_signal="USR1")
