# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed without notice, at any moment, and go on: only the last steps are lost.

Three kinds of moments: any time, a byte of a file that is being written, and the renames around it.
"""

import os
import random
import signal

import pytest
from checkpoint_runs import fit, forked, state_hash, training_rows
from lightning.pytorch import Callback

from scm_lightning.callbacks import Checkpoints
from scm_lightning.storage import Checkpoint, History, archive

STEPS, EVERY = 24, 2
FILE_SIZE = 60_000


class Announces(Callback):
    """Prints what has been saved, before the next batch."""

    def on_train_batch_start(self, trainer, *args):
        own = next(each for each in trainer.callbacks if isinstance(each, Checkpoints))
        print(f"saved {own._saved_step}.", flush=True)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at_byte(number):
    """Kill this process once so many bytes of checkpoints have been written."""
    write, left = archive._Hashed._pass_on, [number]

    def counted(hashed, data):
        if hashed.opened is not None and len(data) > left[0]:
            write(hashed, data[: left[0]])
            hashed.opened.flush()
            kill()
        left[0] -= len(data)
        write(hashed, data)

    archive._Hashed._pass_on = counted


def dies_at_call(name, number):
    """Kill this process before the n-th call of a function of `os`."""
    call, left = getattr(os, name), [number]

    def counted(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            kill()
        return call(*args, **kwargs)

    setattr(os, name, counted)


def attempt(folder, draw, ends):
    """Train in a process that is killed at a random moment; whether it was."""
    kind = draw.choice(["time", "byte", "replace", "link", "fsync"])
    seconds = draw.uniform(0.05, 0.9) if kind == "time" else None
    number = draw.randint(1, 8)
    byte = draw.randint(0, 5 * FILE_SIZE)

    def run():
        if kind == "byte":
            dies_at_byte(byte)
        elif kind != "time":
            dies_at_call(kind, number)
        fit(folder, STEPS, every=EVERY, val_check_interval=7, callbacks=[Announces()])

    code, printed = forked(run, seconds)
    assert code in (0, -signal.SIGKILL), printed[-3000:]
    ends.append((kind, code))
    return [int(word) for word in printed.replace("saved ", "\n").split(".\n") if word.isdigit()]


def run_with_kills(folder, draw, num_kills):
    """Kill and go on until so many kills; then to the end. Kinds of all ends, exit codes."""
    ends = []
    announced = 0
    while sum(code != 0 for _, code in ends) < num_kills and not done(folder):
        announced = max([announced, *attempt(folder, draw, ends)])
        found = History(folder / "checkpoints").newest()
        assert not found.damaged
        assert found.step >= announced
        last = folder / "checkpoints" / "last.ckpt"
        assert found.file is None or Checkpoint(last).step == found.step
    return ends


def train_on(folder):
    code, printed = forked(lambda: fit(folder, STEPS, every=EVERY, val_check_interval=7))
    assert code == 0, printed[-3000:]


def done(folder):
    return History(folder / "checkpoints").newest().step >= STEPS


def many_kills(tmp_path, num_kills, seed):
    """Runs with kills against the unbroken one; how many there were."""
    whole, draw, ends, num_runs = tmp_path / "whole", random.Random(seed), [], 0
    train_on(whole)
    expected = state_hash(whole / "checkpoints" / "last.ckpt")
    while (count := sum(code != 0 for _, code in ends)) < num_kills:
        folder = tmp_path / f"run_{num_runs}"
        num_runs += 1
        ends += run_with_kills(folder, draw, num_kills - count)
        if not done(folder):
            train_on(folder)
        History(
            folder / "checkpoints"
        ).sweep()  # as the next start does, after a kill behind the last step
        files = {each.name for each in (folder / "checkpoints").iterdir()}
        assert state_hash(folder / "checkpoints" / "last.ckpt") == expected
        # A step is saved before it is logged, so that each kill can cost a line of the log.
        missing = {*training_rows(whole)} - {*training_rows(folder)}
        assert not {*training_rows(folder)} - {*training_rows(whole)}
        assert len(missing) <= num_kills
        assert not [name for name in files if not name.endswith((".ckpt", ".lock"))]
    kinds = {kind for kind, code in ends if code}
    print(f"{count} kills {sorted(kinds)} in {num_runs} runs: all equal the unbroken one")
    return count


def test_ten_kills(tmp_path):
    assert many_kills(tmp_path, 10, seed=0) == 10


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    assert many_kills(tmp_path, 100, seed=1) == 100
