# SPDX-License-Identifier: Apache-2.0
"""The processes of a strategy in test_distributed.py, one after the other through all their runs.

    python distributed_program.py STRATEGY FOLDER PLAN ...

A plan, such as `two`, says how many there are and what they do; files are in STRATEGY2 and so on.
Every process is a fork of this one, with LOCAL_RANK in its environment, as Lightning's own launcher
sets it: what takes longest, the imports, is done once. If one fails, all are ended.
"""

import logging
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch
from distributed_runs import CASES, EVERY, JOINED_BATCH, SCD, Place, consistency
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from scm_lightning import ConsistencyModule
from scm_lightning.autodiff import TangentComputer
from scm_lightning.modules import batch_checks
from scm_lightning.modules.sharding import shard

MAPPED = "scd_dual_float32"
MAPPED_STOPS = (8, 14)
"""Steps that two processes take of a run, and four processes after them."""
FILE_STEP = 2
"""Steps of a file from which two processes go on that save folders."""


class LeavesHeadWhole(ConsistencyModule):
    """The mistake: FSDP2 for the networks, but not for the weighting head."""

    def configure_model(self):
        for network in (self.student, self.teacher, *(each.network for each in self.averages())):
            if not isinstance(network, FSDPModule):
                fully_shard(network, mesh=self.device_mesh["data_parallel"])


def local_shares(module):
    """Share of its weights that every network has in this process."""
    shares = {}
    for name, child in module.named_children():
        weights = [each for each in child.parameters() if isinstance(each, DTensor)]
        if weights:
            whole = sum(each.numel() for each in weights)
            shares[name] = sum(each.to_local().numel() for each in weights) / whole
    return shares


def sharded_start(mesh, rank):
    """Weight and buffer of a network that another seed made in every process, once sharded."""
    torch.manual_seed(rank)
    owner = nn.ModuleDict({"network": nn.BatchNorm1d(5)})
    nn.init.normal_(owner["network"].weight)
    nn.init.normal_(owner["network"].running_mean)
    shard(owner, mesh)
    return owner["network"].weight.full_tensor().detach(), owner["network"].running_mean


def refusal(run_it, *args, **kwargs):
    """Message of the ValueError that something must end in."""
    try:
        run_it(*args, **kwargs)
    except ValueError as error:
        return str(error)
    raise AssertionError("it was not refused")


def mistakes(place, module):
    """What FSDP2 refuses, and what it would do without a word."""
    found = {"shares": local_shares(module)}
    careless = consistency(SCD(), "dual", LeavesHeadWhole)
    place.run("scd_dual", stop=4, name="careless", module=careless)
    found["whole_head"] = careless.objective.weighting_head.linear.weight.detach()
    compiled = consistency(SCD(), "dual")
    compiled.objective.tangents = TangentComputer("dual", compile=True)
    found["compiled"] = refusal(place.run, "scd_dual", name="x", module=compiled)
    found["start"] = sharded_start(module.device_mesh["data_parallel"], place.rank)
    module.bare = nn.Parameter(torch.ones(2))
    found["bare"] = refusal(module.configure_model)
    return found


def two(place: Place) -> None:
    """All that one of two processes does."""
    found = {}
    place.run(MAPPED, name="mapped", stop=MAPPED_STOPS[0], mapped=True)
    place.run("bf16")
    place.run("scd_dual", stop=2)
    for name, origin in (("resumed", place.folder), ("taken_over", place.folder.parent / "auto1")):
        place.run("scd_dual", start=2, stop=4, name=name, ckpt=origin / "scd_dual.2.ckpt")
    for case in CASES:
        module = place.run(case)
    if place.strategy == "fsdp2":
        found = mistakes(place, module)
    batch_checks.STATISTICS_SAMPLES = 2 * JOINED_BATCH
    scale = 1.0 + 99 * place.rank
    found["statistics"] = refusal(place.run, "scd_dual", name="x", scale=scale)
    torch.save(found, place.folder / f"found.{place.rank}.pt")


def four(place: Place) -> None:
    """What one of four processes does: a case, and the run that two processes have begun."""
    start, stop = MAPPED_STOPS
    begun = place.folder.parent / f"{place.strategy}2" / "mapped" / "last.ckpt"
    place.run(MAPPED, start, stop, name="mapped", ckpt=begun, mapped=True)
    place.run("scd_dual")


def parts_of_two(place: Place) -> None:
    """What one of two processes does that save folders: a run, and another, from a file."""
    place.run(MAPPED, name="mapped", stop=MAPPED_STOPS[0], mapped=True)
    origin = place.folder.parent / "auto1" / f"scd_dual.{FILE_STEP}.ckpt"
    place.run("scd_dual", start=FILE_STEP, stop=4, name="taken_over", ckpt=origin)


def parts_of_four(place: Place) -> None:
    """Four go on from the two's folder."""
    start, stop = MAPPED_STOPS
    begun = place.folder.parent / f"{place.strategy}2" / "mapped" / "last.ckpt"
    place.run(MAPPED, start, stop, name="mapped", ckpt=begun, mapped=True)


def every(place: Place) -> None:
    """All cases."""
    for case in EVERY:
        place.run(case)


def forked(rank: int, act, place: Place) -> int:
    """One of the processes."""
    child = os.fork()
    if child == 0:
        code = 1
        os.environ["LOCAL_RANK"] = str(rank)
        try:
            act(place)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def together(strategy: str, folder: Path, world_size: int, act) -> bool:
    """Start all processes and wait for them: whether all have done their runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    folder = folder / f"{strategy}{world_size}"
    folder.mkdir()
    children = {
        forked(rank, act, Place(folder, strategy, rank, world_size)) for rank in range(world_size)
    }
    is_done = True
    while children:
        child, status = os.wait()
        children.discard(child)
        if status and is_done:
            is_done = False
            for other in children:
                os.kill(other, signal.SIGKILL)
    return is_done


PLANS = {
    "two": (2, two),
    "four": (4, four),
    "every": (4, every),
    "parts_of_two": (2, parts_of_two),
    "parts_of_four": (4, parts_of_four),
}


def main(strategy: str, folder: str, *plans: str) -> int:
    """Do the plans one after the other; exit code 0 if all of it is done."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "NODE_RANK": "0"}
    return int(not all(together(strategy, Path(folder), *PLANS[plan]) for plan in plans))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
