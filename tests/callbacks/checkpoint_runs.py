# SPDX-License-Identifier: Apache-2.0
"""Small runs to interrupt and to go on with, for the tests of checkpoints.

A consistency model with dropout, two averages, a schedule and a tangent warm-up, gradients of three
batches per step, epochs of 17 batches (so the last step of each has two), a validation every six.
"""

import csv
import hashlib
import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gaussian import PATH
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from scm_lightning import ConsistencyModule
from scm_lightning.callbacks import Checkpoints, RunLog
from scm_lightning.core import TangentWarmup
from scm_lightning.data import Batch, RequestStream
from scm_lightning.modules import FlatCosine, HalfLife, PowerFunction
from scm_lightning.networks import MLP
from scm_lightning.objectives import Consistency
from scm_lightning.storage import History

ACCUMULATED, EPOCH, BATCH_SIZE = 3, 17, 5


class Batches:
    """Batches by their number, which is saved and restored; drawing one draws a global number."""

    def __init__(self, rank: int) -> None:
        self.rank, self.number = rank, 0

    def __len__(self) -> int:
        return EPOCH

    def __iter__(self):
        torch.rand(3)  # as a loader that starts its workers
        for _ in range(EPOCH):
            generator = torch.Generator().manual_seed(1000 * self.number + self.rank)
            self.number += 1
            yield Batch(PATH.sigma_data * torch.randn(BATCH_SIZE, 3, generator=generator), None)

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


class Noisy(ConsistencyModule):
    """Draws from all generators in its training step."""

    def training_step(self, batch, batch_idx):
        shift = 1e-3 * (np.random.standard_normal() + np.random.rand() + random.gauss(0, 1))
        return super().training_step(batch._replace(x0=batch.x0 + shift), batch_idx)


class Losses(Callback):
    """Losses of all batches of this process, as they would be written down."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.found.append(repr(float(outputs["loss"])))


def module(num_classes: int = 0) -> ConsistencyModule:
    """The model, the same whenever it is made."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    network = MLP((3,), 8, 1, emb_channels=8, dropout=0.2, num_classes=num_classes)
    return Noisy(
        network,
        objective=Consistency(warmup=TangentWarmup(20)),
        path=PATH,
        optimizer=lambda groups: torch.optim.RAdam(groups, lr=0.01, betas=(0.9, 0.99)),
        lr_schedule=lambda optimizer: FlatCosine(optimizer, total_steps=60, ramp_steps=10),
        ema=[HalfLife(100.0), PowerFunction(0.1)],
    )


def fit(folder: Path, steps: int, ckpt: str | Path | None = "last", **options: object):
    """Train up to a step; from the newest checkpoint of the folder unless told otherwise.

    Args:
        folder: of the run.
        steps: optimizer steps, counted from the start of the run.
        ckpt: checkpoint to go on from, None for a start from nothing.
        options: of the trainer; `every` optimizer steps between checkpoints, `callbacks` to add.

    Returns:
        The trainer, the losses of every batch.
    """
    warnings.simplefilter("ignore")
    every = options.pop("every", 4)
    if ckpt == "last":
        ckpt = History(folder / "checkpoints").newest().file
    losses = Losses()
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "accumulate_grad_batches": ACCUMULATED,
        "val_check_interval": 6,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "logger": RunLog(str(folder), flush_logs_every_n_steps=3),
    }
    callbacks = [losses, Checkpoints(every_n_train_steps=every), *options.pop("callbacks", [])]
    trainer = Trainer(max_steps=steps, callbacks=callbacks, **{**settings, **options})
    requests = RequestStream(6, 0, 2, (3,), 0, 0, 1)
    trainer.fit(
        module(),
        Batches(int(os.environ.get("LOCAL_RANK", "0"))),
        DataLoader(requests, batch_size=None),
        ckpt_path=None if ckpt is None else str(ckpt),
    )
    return trainer, losses.found


def batches(steps: int) -> int:
    """Batches of so many optimizer steps: six steps are an epoch, the last has fewer batches."""
    epochs, rest = divmod(steps, -(-EPOCH // ACCUMULATED))
    return epochs * EPOCH + rest * ACCUMULATED


def state_hash(file: Path) -> str:
    """SHA-256 of all that a checkpoint says of the run: names, types, shapes and bytes."""
    content = torch.load(file, map_location="cpu", weights_only=True)
    sha256 = hashlib.sha256()

    def add(x: object, name: str) -> None:
        if isinstance(x, dict):
            for key in sorted(x, key=str):
                add(x[key], f"{name}.{key}")
        elif isinstance(x, list | tuple):
            for number, each in enumerate(x):
                add(each, f"{name}.{number}")
        elif isinstance(x, torch.Tensor):
            sha256.update(f"{name} {x.dtype} {tuple(x.shape)} ".encode() + x.numpy().tobytes())
        else:
            sha256.update(f"{name} {x!r} ".encode())

    parts = ("state_dict", "optimizer_states", "lr_schedulers", "random_states", "global_step")
    for part in parts:
        add(content[part], part)
    add(content["loops"]["fit_loop"]["state_dict"]["combined_loader"], "loader")
    return sha256.hexdigest()


def training_rows(folder: Path) -> list[str]:
    """Rows of the log that are of training steps, as text: step and loss."""
    with (folder / "metrics.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return [f"{row['step']} {row['train/loss']}" for row in rows if row["train/loss"]]


def forked(action: Callable[[], None], kill_after: float | None = None) -> tuple[int, str]:
    """Do something in a process of its own, which has all that this one has imported.

    Args:
        action: what to do.
        kill_after: seconds after which the process is killed without notice.

    Returns:
        Exit code, negative for a signal; what it printed.
    """
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        code = 1
        try:
            os.dup2(writable, 1)
            os.dup2(writable, 2)
            sys.stdout = sys.stderr = os.fdopen(writable, "w", buffering=1)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writable)
    if kill_after is not None:
        signal.signal(signal.SIGALRM, lambda *args: os.kill(child, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, kill_after)
    with open(readable, errors="replace") as pipe:
        printed = pipe.read()
    _, status = os.waitpid(child, 0)
    if kill_after is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return os.waitstatus_to_exitcode(status), printed
