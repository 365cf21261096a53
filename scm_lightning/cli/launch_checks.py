# SPDX-License-Identifier: Apache-2.0
"""Machines, processes and GPUs that a configuration counts on, and that are not there.

Lightning waits without end for machines on which nobody has started a process.
"""

import os
import pkgutil

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: on
import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from scm_lightning.cli.option_checks import specs

LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
"""Launchers that Lightning looks for: it compares the number of machines they announce itself."""
BY_HAND = ({"NODE_RANK", "GROUP_RANK"}, {"MASTER_ADDR"}, {"MASTER_PORT"})
"""Variables of processes that are started by hand on every machine: one of each set is needed."""
INHERITING = {"spawn", "fork", "forkserver", "notebook"}
"""Ways to start processes that take over objects of the first; a command's own are not made so."""


def check_launch(config: Namespace) -> None:
    """Refuse what would wait for machines without end, or fail without saying why.

    Args:
        config: options of a subcommand; a dry run of a bench runs elsewhere than it plans for.

    Raises:
        ValueError: if there are to be several machines and nobody has announced more than this one;
            if processes are not to be started as programs; or if there is no GPU.
    """
    trainer = config.trainer
    if config.get("dry_run"):
        return
    if trainer.accelerator in ("gpu", "cuda") and not torch.accelerator.is_available():
        raise ValueError(
            f"trainer.accelerator {trainer.accelerator} needs a GPU, and this machine has none; "
            "add --config configs/overlays/cpu.yaml after the other, which makes it one process "
            "on the CPU"
        )
    is_on_cpu = trainer.accelerator == "cpu" or (
        trainer.accelerator == "auto" and not torch.accelerator.is_available()
    )
    if is_on_cpu and str(trainer.devices) in ("-1", "0"):
        raise ValueError(
            f"trainer.devices must be the number of processes on a CPU, got {trainer.devices}, and "
            "this run has no GPU; give --trainer.devices 1 or more"
        )
    if trainer.num_nodes > 1 and not _are_nodes_announced(trainer):
        raise ValueError(
            f"trainer.num_nodes {trainer.num_nodes} needs a launcher on every machine, got none: "
            "start the command with torchrun or srun, or set NODE_RANK, MASTER_ADDR and "
            "MASTER_PORT on each; on this machine alone give --trainer.num_nodes 1"
        )
    if INHERITING & set(_start_method(trainer.strategy).split("_")):
        raise ValueError(
            f"trainer.strategy must start its processes as programs, got "
            f"{_start_method(trainer.strategy)}; give --trainer.strategy ddp"
        )


def _are_nodes_announced(trainer: Namespace) -> bool:
    """Tell whether more machines are announced: by a launcher, a user, or a plugin."""
    plugins = (pkgutil.resolve_name(each["class_path"]) for each in specs(trainer.plugins))
    return (
        any(each.detect() for each in LAUNCHERS)
        or all(names & os.environ.keys() for names in BY_HAND)
        or any(issubclass(each, ClusterEnvironment) for each in plugins)
    )


def _start_method(strategy: str | Namespace) -> str:
    """Way in which a strategy starts its processes: its name, or an argument."""
    if isinstance(strategy, str):
        return strategy
    return str(strategy.get("init_args", Namespace()).get("start_method"))  # type: ignore[no-untyped-call]
