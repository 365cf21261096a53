# SPDX-License-Identifier: Apache-2.0
"""Signals to commands at drawn moments: code, one line, nothing left, and on to the bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_early_signals import takes_signals
from test_overlays import ROOT, last, words

from scm_lightning.ending import LAUNCHER

PROGRAM = Path(__file__).with_name("signalled_command.py")
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}
RUN, STEPS = "digits_teacher_cpu", 12
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
MOST = {"import": 2500, "extension": 60, "collection": 60, "fork": 6, "call": 400_000}
"""Moments of a kind that a command has, about."""


def command(stage, folder):
    """Words of a command that is done in a few seconds, in a folder of its own."""
    if stage == "prepare":
        sizes = ["--size=8", "--workers=2", "--samples_per_shard=10", "--heldout=10"]
        return ["prepare", f"--source={folder / 'images'}", f"--out={folder / 'out'}", *sizes]
    of_fit = {
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": 8,
        "trainer.log_every_n_steps": 1,
        "data.init_args.num_workers": 2,
        "checkpoints.every_n_train_steps": 5,
        # Whatever max_steps is: `begin` is the first half of the same run.
        "model.init_args.lr_schedule.init_args.total_steps": STEPS,
        "model.init_args.lr_schedule.init_args.ramp_steps": 2,
    }
    name = "fit" if stage in ("begin", "resume", "ranks") else stage
    found = words(name, "digits_teacher", "cpu", folder, **(of_fit if name == "fit" else {}))
    further = {"begin": [f"--trainer.max_steps={STEPS // 2}"], "ranks": TWO}
    return [*found, *further.get(stage, [])]


def environment():
    """That of a shell; another test of this process may have run a command, its launcher then."""
    kept = {name: x for name, x in os.environ.items() if name not in (LAUNCHER, "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(stage, folder):
    """Give the command, again perhaps, until it is done."""
    process = started("-m", "scm_lightning", *command(stage, folder))
    printed = process.communicate(timeout=250)[1]
    assert process.returncode == 0, printed[-3000:]


def signalled(stage, folder, moment, number, name):
    """Exit code and standard error of a command that is sent a signal.

    At a moment that it counts itself, or `time`: number milliseconds after it takes signals, from
    outside, to it alone or to all its processes.
    """
    if moment != "time":
        process = started(PROGRAM, moment, number, name, *command(stage, folder))
        return process, process.communicate(timeout=250)[1]
    process = started("-m", "scm_lightning", *command(stage, folder))
    while process.poll() is None and not takes_signals(process.pid):
        time.sleep(0.01)
    time.sleep(number / 1000)
    if process.poll() is None:
        send = os.killpg if number % 2 else os.kill
        send(process.pid, signal.Signals[name])
    return process, process.communicate(timeout=250)[1]


def left_of(process):
    """Processes of its session that still run. Workers look for their parent every few seconds."""
    end = time.monotonic() + 60
    while True:
        listed = subprocess.run(["ps", "-eo", "sid=,stat=,args="], capture_output=True, text=True)
        fields = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
        left = [args for sid, stat, args in fields if sid == str(process.pid) and stat[0] != "Z"]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.2)


def judged(process, printed, name):
    """What became of it: `stopped`, `not stopped`; anything else is wrong, and says how."""
    said = [line for line in printed.splitlines() if line.startswith("scm: stopped by")]
    if left := left_of(process):
        os.killpg(process.pid, signal.SIGKILL)
        return f"left {left}"
    if any(word in printed for word in ("Traceback", "Exception ignored", "rror:", "failed")):
        return f"more than a line: {printed[-2000:]}"
    if not said:
        return "not stopped" if process.returncode == 0 else f"silent, {process.returncode}"
    if (process.returncode, len(said)) != (CODES[name], 1) or name not in said[0]:
        return f"wrong line or code: {process.returncode}, {printed[-2000:]}"
    return "stopped"


def product(stage, folder):
    """What a command that is done has made, to compare."""
    run = folder / RUN
    if stage == "prepare":
        files = sorted(file for file in (folder / "out").iterdir())
        return {file.name: file.read_bytes().replace(bytes(folder), b"") for file in files}
    if stage == "test":
        content = json.loads((run / "metrics.json").read_text())
        del content["protocol"]["checkpoint"]
        return content
    if stage == "predict":
        return {key: x.tobytes() for key, x in np.load(run / "samples" / "samples.npz").items()}
    saved = torch.load(last(folder, RUN), weights_only=True)
    assert saved["global_step"] == STEPS
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "random_states")
    leaves = torch.utils._pytree.tree_leaves({key: saved[key] for key in kept})
    return [x.numpy().tobytes() if isinstance(x, torch.Tensor) else x for x in leaves]


def unfinished(folder):
    """Files and folders that are of no use to anybody; half a sample would be one."""
    return [path for path in folder.rglob("*") if ".part" in path.name or ".shards-" in path.name]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """By command, the folder that it starts from."""
    fresh, begun = (tmp_path_factory.mktemp(name) for name in ("fresh", "begun"))
    finish("begin", begun)
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    for number, pixels in enumerate(images):
        file = fresh / "images" / f"class{number % 3}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    trained = dict.fromkeys(("resume", "test", "predict"), begun)
    return {**trained, **dict.fromkeys(("fit", "ranks", "prepare"), fresh)}


@pytest.fixture(scope="module")
def unbroken(begun, tmp_path_factory):
    """What a command makes that nobody stops."""

    @cache
    def made(stage):
        folder = tmp_path_factory.mktemp(stage) / "run"
        shutil.copytree(begun[stage], folder)
        finish(stage, folder)
        return product(stage, folder)

    return made


def outcome(begun, folder, stage, moment, number, name, unbroken=None):
    """What becomes of a command that is sent a signal, and of the same one given again."""
    shutil.copytree(begun[stage], folder)
    process, printed = signalled(stage, folder, moment, number, name)
    found = judged(process, printed, name)
    if left := unfinished(folder):
        return f"left {left}"
    if unbroken is not None:
        finish(stage, folder)
        # A run that goes on is one that was never stopped.
        if product(stage, folder) != unbroken("fit" if stage == "resume" else stage):
            return "not the same in the end"
    return found


@pytest.mark.parametrize(
    ("stage", "moment", "number", "name", "goes_on"),
    [
        ("predict", "extension", 5, "SIGINT", False),
        ("test", "_exit_function", 1, "SIGUSR1", False),
        ("prepare", "fork", 3, "SIGTERM", True),
        ("resume", "restore_optimizers", 1, "SIGUSR1", True),
    ],
)
def test_a_signal_ends_a_command_in_one_line(
    begun, unbroken, tmp_path, stage, moment, number, name, goes_on
):
    """While it imports, at a fork, before the first step, behind the last result."""
    further = unbroken if goes_on else None
    assert outcome(begun, tmp_path / "run", stage, moment, number, name, further) == "stopped"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_drawn_signals(begun, unbroken, tmp_path):
    """Every command, every kind of moment; the few that come after the end change nothing."""
    draw, found = random.Random(7), {}
    for trial in range(100):
        stage = draw.choice(["fit", "resume", "ranks", "test", "predict", "prepare"])
        moment = draw.choice(["time", "time", *MOST])
        number = draw.randint(1, MOST.get(moment, 6000))
        name = draw.choice(list(CODES))
        folder = tmp_path / str(trial)
        result = outcome(begun, folder, stage, moment, number, name, unbroken)
        found[trial, stage, moment, number, name] = result
        print(trial, stage, moment, number, name, result, flush=True)
        shutil.rmtree(folder)
    table = Counter((stage, moment, result) for (_, stage, moment, *_), result in found.items())
    print(*(f"{count:3d} {key}" for key, count in sorted(table.items())), sep="\n")
    wrong = {at: each for at, each in found.items() if each not in ("stopped", "not stopped")}
    assert not wrong
    assert sum(each == "stopped" for each in found.values()) > 70
