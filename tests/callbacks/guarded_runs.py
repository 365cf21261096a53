# SPDX-License-Identifier: Apache-2.0
"""Runs of two real processes for the tests of the guards: signals, bad numbers, gradients.

As a program it reads jobs from a file and writes what came of them beside it. It imports everything
once and forks the processes of every job, since an import takes longer than a run.
"""

import atexit
import ctypes
import gc
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: split
import torch
from guarded_module import NUM_STEPS, Dummies, Guarded
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.distributed import TCPStore
from torch.utils.data import DataLoader

from scm_lightning.callbacks import (
    BadNumbers,
    Checkpoints,
    Diagnostics,
    GradientSync,
    LostProcess,
    StopSignals,
    lost_process,
)
from scm_lightning.data.worker_signals import leave_signals_to_parent

WORLD_SIZE, PATIENCE = 2, 150.0
PHASES = ("first", "train", "validation", "save")


def run(rank, folder, job):
    """One of the processes of a job."""
    reached = set()

    def reach(phase, seconds):
        if phase not in reached:
            reached.add(phase)
            (folder / f"{phase}.{rank}").touch()
            while job.get("hold") == phase and not (folder / "sent").exists():
                time.sleep(0.002)
            time.sleep(seconds if job.get("signal") else 0.0)

    module = Guarded(reach, rank, job)
    torch.manual_seed(11)
    sync = GradientSync(False, 0) if job.get("unchecked") else GradientSync(every_n_steps=3)
    guards = [sync, BadNumbers(job.get("max_in_a_row", 10)), StopSignals()]
    trainer = Trainer(
        accelerator="cpu",
        strategy=job.get("strategy", "ddp"),
        devices=WORLD_SIZE,
        max_steps=NUM_STEPS,
        accumulate_grad_batches=2,
        val_check_interval=8,
        num_sanity_val_steps=2,
        default_root_dir=folder,
        callbacks=[
            *guards,
            LostProcess(job.get("timeout", 60)),
            Diagnostics(2),
            Checkpoints(str(folder / "c"), 5),
        ],
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=job.get("clip"),
    )
    workers = 1 if job.get("to") == "all" else 0
    options = {"num_workers": workers, "worker_init_fn": leave_signals_to_parent}
    train = DataLoader(Dummies(reach), batch_size=None, **(options if workers else {}))
    last = folder / "c" / "last.ckpt"
    try:
        validation = DataLoader(range(3), batch_size=None)
        trainer.fit(module, train, validation, ckpt_path=last if last.exists() else None)
    finally:
        report = {"step": trainer.global_step, "received": guards[2].received}
        (folder / f"stopped.{rank}").write_text(json.dumps(report))
    state = {name: whole(each) for name, each in module.state_dict().items()}
    torch.save({"state": state, "step": trainer.global_step}, folder / f"end.{rank}")


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def fork(folder, job):
    """Start the processes of a job in a group of their own; their numbers, and the store.

    It is in this program, as in torchrun; or in the first of them, as Lightning has it.
    """
    store, agent = None, {}
    if job.get("store") == "first":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
    else:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = str(store.port)
        agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    pids = []
    for rank in range(WORLD_SIZE):
        if pid := os.fork():
            pids.append(pid)
            os.setpgid(pid, pids[0])
            continue
        os.setpgid(0, pids[0] if pids else 0)
        # Its threads are not in the fork, which would wait for them if it closed the store.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(store))
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
        os.environ.update(places, **agent, LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD_SIZE))
        log = os.open(folder / f"log.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if rank:  # the first has launched it
            lost_process.kill_launcher = partial(os.kill, pids[0], signal.SIGKILL)
        try:
            run(rank, folder, job)
        except (ValueError, OSError) as error:  # as the command line does
            print(f"error: {error}", flush=True)
            raise SystemExit(2) from None
        raise SystemExit(0)
    return pids, store


def send(job, pids, folder):
    """Wait for a phase, a moment more, and send the signal."""
    signum, rng = signal.Signals[job["signal"]], random.Random(job.get("seed", 0))
    phase = job.get("hold") or job["phase"]
    watched = folder / f"{phase}.{1 if job['to'] == 'rank 1' else 0}"
    end = time.monotonic() + PATIENCE
    while not watched.exists() and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 0.15))
    for _ in range(job.get("times", 1)):
        if job["to"] == "all":
            os.killpg(pids[0], signum)  # loader workers too
        for pid in {"rank 0": pids[:1], "rank 1": pids[1:], "each": pids, "all": []}[job["to"]]:
            os.kill(pid, signum)
            time.sleep(rng.uniform(0.0, 0.02))
        time.sleep(0.05)
    (folder / "sent").touch()
    if signum == signal.SIGSTOP and "paused" in job:
        time.sleep(job["paused"])
        os.killpg(pids[0], signal.SIGCONT)


def num_left(group):
    """Processes of a group that still run."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True).stdout
    groups = [line.split() for line in listed.splitlines()]
    return sum(each == str(group) and not state.startswith("Z") for each, state in groups)


def wait(pids):
    """Exit codes, -1000 for a process that had to be killed; and what is left of their group.

    The loader's workers end by themselves, a moment after their process.
    """
    codes, end = {}, time.monotonic() + PATIENCE
    while len(codes) < len(pids) and time.monotonic() < end:
        for pid in set(pids) - codes.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    end = time.monotonic() + PATIENCE / 10
    while (left := num_left(pids[0])) and len(codes) == len(pids) and time.monotonic() < end:
        time.sleep(0.1)
    if left:
        os.killpg(pids[0], signal.SIGKILL)
    for pid in set(pids) - codes.keys():
        os.waitpid(pid, 0)
    return [codes.get(pid, -1000) for pid in pids], left


def do(name, job, folder):
    """All that a job asks for."""
    folder.mkdir(parents=True)
    found = {"job": job}
    for number in range(2 if job.get("resume") else 1):
        start = time.monotonic()
        pids, store = fork(folder, job if number == 0 else {**job, "signal": None})
        if number == 0 and job.get("signal"):
            send(job, pids, folder)
            start = time.monotonic()
        codes, left = wait(pids)
        del store
        stopped = [folder / f"stopped.{rank}" for rank in range(WORLD_SIZE)]
        last = folder / "c" / "last.ckpt"
        found[("first", "resumed")[number]] = {
            "codes": codes,
            "left": left,
            "seconds": time.monotonic() - start,
            "stopped": [json.loads(each.read_text()) for each in stopped if each.exists()],
            "saved": torch.load(last, weights_only=True)["global_step"] if last.exists() else None,
            "log": "".join((folder / f"log.{rank}").read_text()[-3000:] for rank in range(2)),
        }
    return found


def do_all(jobs, folder):
    """Do jobs in a program of its own; what came of them, by name."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (tests, tests.parent)))  # this package, and no installed one
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", __file__, file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


if __name__ == "__main__":
    torch.set_num_threads(1)
    atexit.register(gc.freeze)  # or each exit looks through all objects once more
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    jobs_file = Path(sys.argv[1])
    results = {}
    for name, job in json.loads(jobs_file.read_text()).items():
        results[name] = do(name, job, jobs_file.parent / name)
        jobs_file.with_name("results.json").write_text(json.dumps(results))
