# SPDX-License-Identifier: Apache-2.0
"""`scm fit` on two hosts, started by torchrun on each: the run of one host with two processes.

The hosts are network namespaces of this machine, joined by a cable of their own, each with a host
name of its own: what the one listens to on its loopback device the other cannot reach. Where that
is not permitted, they are two groups of processes on 127.0.0.1.
"""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "digits_teacher.yaml"
TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
STOPS = (4, 6)
"""Optimizer steps of the first command, and of the second, which goes on."""


@dataclass
class Host:
    """A machine: how a command is run there, and its address and network device."""

    prefix: list[str]
    address: str
    device: str


def ip(*words):
    """Exit code of an `ip` command; 1 where there is no such program."""
    if shutil.which("ip") is None:
        return 1
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def hosts():
    """Two hosts; what was made for them is removed."""
    names = [f"scm{os.getpid()}{letter}" for letter in "ab"]
    cable = [f"v{name}"[-15:] for name in names]
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"']
    made = [
        Host(["ip", "netns", "exec", name, *named, name], f"10.77.0.{number}", device)
        for number, (name, device) in enumerate(zip(names, cable, strict=True), 1)
    ]
    try:
        codes = [ip("netns", "add", name) for name in names]
        codes.append(ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1]))
        for name, host in zip(names, made, strict=True):
            codes += [
                ip("link", "set", host.device, "netns", name),
                ip("-n", name, "addr", "add", f"{host.address}/24", "dev", host.device),
                ip("-n", name, "link", "set", host.device, "up"),
                ip("-n", name, "link", "set", "lo", "up"),
            ]
        yield [Host([], "127.0.0.1", "lo")] * 2 if any(codes) else made
    finally:
        for name in names:
            ip("netns", "del", name)  # and its end of the cable


def words(root, strategy, stop, *options):
    """A short run; a validation every other step, samples of it drawn by both."""
    given = {
        "trainer.default_root_dir": root,
        "trainer.accelerator": "cpu",
        "trainer.strategy": strategy,
        "trainer.max_steps": stop,
        "trainer.val_check_interval": 2,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "data.init_args.root": root.parent / "shards",
        "data.init_args.batch_size": 32,
        "data.init_args.num_val_samples": 21,
        "data.init_args.sample_batch_size": 10,
        "model.init_args.network.init_args.model_channels": 16,
        "model.init_args.network.init_args.num_blocks": 1,
        "model.init_args.lr_schedule.init_args.total_steps": 2500,  # also of a run that goes on
        "model.init_args.lr_schedule.init_args.ramp_steps": 2,
    }
    scm = ["-m", "scm_lightning", "fit", f"--config={CONFIG}"]
    return [*scm, *(f"--{key}={value}" for key, value in given.items()), *options]


def on_two_hosts(hosts, root, strategy, stop):
    """Start torchrun on both, as one would by hand; what they have printed."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    run = words(root, strategy, stop, "--trainer.num_nodes=2", "--trainer.devices=1")
    place = [f"--master_addr={hosts[0].address}", f"--master_port={port}", "--nproc_per_node=1"]
    logs = [root.with_name(f"{stop}.{number}.log") for number in range(2)]
    processes = [
        subprocess.Popen(
            [*host.prefix, *TORCHRUN, "--nnodes=2", f"--node_rank={number}", *place, *run],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": host.device},
            cwd=ROOT,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for number, (host, log) in enumerate(zip(hosts, logs, strict=True))
    ]
    try:
        codes = [process.wait(timeout=200) for process in processes]
    except subprocess.TimeoutExpired:
        codes = ["too long"]
    finally:
        for process in processes:
            process.terminate()  # torchrun ends its own
    printed = [log.read_text() for log in logs]
    assert codes == [0, 0], "\n".join(text[-3000:] for text in printed)
    return printed


def on_one_host(root, strategy, stop):
    done = subprocess.run(
        [sys.executable, *words(root, strategy, stop, "--trainer.devices=2")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def last(root):
    checkpoint = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == STOPS[-1]
    return checkpoint


def flat(tree, name=""):
    """Tensors and numbers of nested containers, by their place."""
    if isinstance(tree, list | tuple):
        tree = dict(enumerate(tree))
    if isinstance(tree, dict):
        return {k: v for key in tree for k, v in flat(tree[key], f"{name}.{key}").items()}
    return {name: torch.as_tensor(tree)} if isinstance(tree, torch.Tensor | int | float) else {}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_hosts_train_as_one_with_two_processes(strategy, hosts, tmp_path):
    """Weights, averages, moments and random numbers to the bit, also in the run that goes on.

    The shards are missing at first: both hosts write them, into the one folder that they share.
    """
    apart, together = tmp_path / "apart", tmp_path / "together"
    for stop in STOPS:
        printed = "".join(on_two_hosts(hosts, apart, strategy, stop))
        assert printed.count("Starting with 2 processes") == 1
        on_one_host(together, strategy, stop)
    assert printed.count("last.ckpt, step 4") == 1
    found, expected = last(apart), last(together)
    assert int(found["state_dict"]["ema.num_images"]) == STOPS[-1] * 2 * 32
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "random_states")
    one, other = (flat({part: each[part] for part in parts}) for each in (found, expected))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert len(found["random_states"]) == 2
    logs = [(root / "metrics.csv").read_text() for root in (apart, together)]
    assert logs[0].count("val/fd21_teacher") == 1  # one header
    assert sorted(file.name for file in apart.iterdir()) == sorted(
        file.name for file in together.iterdir()
    )
