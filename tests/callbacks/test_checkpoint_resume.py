# SPDX-License-Identifier: Apache-2.0
"""A run that was interrupted equals the one that was not, bit for bit: losses, states, log."""

import os
import socket
from functools import partial

import pytest
import torch
from checkpoint_runs import batches, fit, forked, state_hash, training_rows
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from scm_lightning.callbacks import Checkpoints
from scm_lightning.storage import History

STEPS = 24


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folder and losses of the run without an interruption."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, fit(folder, STEPS)[1]


def last(folder):
    return folder / "checkpoints" / "last.ckpt"


def test_two_unbroken_runs_are_equal(unbroken, tmp_path):
    """The control, without which the others would say nothing."""
    folder, losses = unbroken
    assert fit(tmp_path, STEPS, None)[1] == losses
    assert state_hash(last(tmp_path)) == state_hash(last(folder))


@pytest.mark.parametrize("stop", [5, 8, 18, 23])
def test_a_resumed_run_is_the_unbroken_one(stop, unbroken, tmp_path):
    """Between files, at a numbered file with a validation due, at an epoch's end, before the last.

    Were a batch trained twice, as Lightning once did after such a save, all later losses would be
    others; the number of batches is checked all the same.
    """
    folder, losses = unbroken
    before, after = fit(tmp_path, stop)[1], fit(tmp_path, STEPS)[1]
    assert before + after == losses
    assert len(losses) == batches(STEPS) == 4 * 17
    assert state_hash(last(tmp_path)) == state_hash(last(folder))
    assert training_rows(tmp_path) == training_rows(folder)
    assert (tmp_path / "metrics.csv").read_text() == (folder / "metrics.csv").read_text()


def test_many_interruptions_and_a_later_end(unbroken, tmp_path):
    """A run may also be continued past the step that it was meant to end at."""
    found = [loss for stop in (1, 2, 7, 12, 13) for loss in fit(tmp_path, stop)[1]]
    assert found == unbroken[1][: batches(13)]
    assert History(tmp_path / "checkpoints").newest().step == 13


class SavesWhenAsked(Callback):
    """Saves from another callback, before the run's own has been told of the batch; then fails."""

    def __init__(self):
        self.saved = []

    def on_train_batch_end(self, trainer, *args):
        own = next(each for each in trainer.callbacks if isinstance(each, Checkpoints))
        if trainer.global_step == 5:
            self.saved.append(own.save_last(trainer))
        if len(self.saved) == 2:
            raise RuntimeError("killed")


def test_saving_on_demand_waits_for_the_step(unbroken, tmp_path):
    """True when the step is done, False in the middle of the next one, whose batches come again."""
    callback = SavesWhenAsked()
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, STEPS, callbacks=[callback], every=100)
    assert callback.saved == [True, False]
    assert fit(tmp_path, 12)[1] == unbroken[1][batches(5) : batches(12)]


class FailsAt(Callback):
    """Fails within the accumulation behind a checkpoint."""

    def __init__(self, step, batch):
        self.place = step, batch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.global_step, batch_idx) >= self.place:
            raise RuntimeError("out of memory")


def test_no_file_is_written_within_an_accumulation(unbroken, tmp_path):
    """Nor by a resumed run that stands at a multiple of the steps when it starts."""
    for step, batch in ((4, 14), (4, 14), (8, 8), (8, 8)):
        with pytest.raises(RuntimeError, match="memory"):
            fit(tmp_path, STEPS, callbacks=[FailsAt(step, batch)])
    assert History(tmp_path / "checkpoints").newest().step == 8
    assert fit(tmp_path, 12)[1] == unbroken[1][batches(8) : batches(12)]


def test_a_checkpoint_without_random_numbers(unbroken, tmp_path, capsys):
    """One of an older version: the run goes on, with others, and it is said."""
    fit(tmp_path, 8)
    content = torch.load(last(tmp_path), weights_only=True)
    del content["random_states"]
    torch.save(content, tmp_path / "old.ckpt")
    found = fit(tmp_path, 10, tmp_path / "old.ckpt")[1]
    assert len(found) == batches(10) - batches(8)
    assert not {*found} & {*unbroken[1]}
    printed = " ".join(capsys.readouterr().out.split())
    assert "old.ckpt has no checksum: read unchecked" in printed
    assert "random numbers are new ones from step 8 on" in printed


def test_an_older_log_of_lightnings_own_is_no_trouble(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    fit(tmp_path, 4, logger=logger)
    assert History(tmp_path / "checkpoints").newest().step == 4


def together(folder, steps, strategy="ddp", num=2):
    """What processes print that train together, over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def one(rank):
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
        os.environ.update(places, LOCAL_RANK=str(rank), WORLD_SIZE=str(num))
        losses = fit(folder, steps, strategy=strategy, devices=num)[1]
        with (folder / f"losses.{rank}").open("a") as file:
            file.write("".join(f"{loss}\n" for loss in losses))

    folder.mkdir(exist_ok=True)
    return forked_all([partial(one, rank) for rank in range(num)])


def forked_all(actions):
    """`forked` for several at once: the first in this process's child, the others in its own."""

    def every():
        children = []
        for action in actions[1:]:
            if (child := os.fork()) == 0:
                try:
                    action()
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        actions[0]()
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)

    code, printed = forked(every)
    assert code == 0, printed[-3000:]
    return printed


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_go_on_with_their_own_numbers(strategy, tmp_path):
    """The losses of both, and everything in the checkpoint, which is one file."""
    together(tmp_path / "whole", 14, strategy)
    together(tmp_path / "broken", 8, strategy)
    together(tmp_path / "broken", 14, strategy)
    for rank in range(2):
        found, expected = (
            (tmp_path / name / f"losses.{rank}").read_text() for name in ("broken", "whole")
        )
        assert found == expected
    one, other = (tmp_path / "whole" / f"losses.{rank}" for rank in range(2))
    assert one.read_text() != other.read_text()
    assert state_hash(last(tmp_path / "broken")) == state_hash(last(tmp_path / "whole"))
    states = torch.load(last(tmp_path / "whole"), weights_only=True)["random_states"]
    assert len(states) == 2
    assert not torch.equal(states[0]["torch"], states[1]["torch"])


def test_another_number_of_processes_is_said(tmp_path, capsys):
    """Two processes go on from the checkpoint of one, with noise of their own in each."""
    fit(tmp_path, 4)
    printed = together(tmp_path, 6)
    assert "has those of 1 processes, this run has 2 on cpu" in " ".join(printed.split())
    states = torch.load(last(tmp_path), weights_only=True)["random_states"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])


def test_the_time_of_a_run_counts_from_each_start(tmp_path):
    """Or a run that `max_time` has ended once would take no step any more."""
    short = {"max_time": {"microseconds": 1}, "accumulate_grad_batches": 1}
    assert [fit(tmp_path, 50, **short)[0].global_step for _ in range(3)] == [1, 2, 3]
