# SPDX-License-Identifier: Apache-2.0
"""Check that there is room for a network, before its weights are made.

The network is built on torch's meta device first, where a tensor has a shape and no memory; that
takes milliseconds. Torch itself refuses a tensor that is too large. Of a U-Net whose
`model_channels` have a 0 too many each tensor fits and all together do not: the system hands out
the memory of each, and kills the process that fills it.
"""

import os
from contextlib import suppress

import torch
from jsonargparse import Namespace
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from scm_lightning.cli.parsers import CommandParser

TRAINED = ("student", "network")
"""Options of the modules that hold the network which is trained."""


def check_network_size(config: Namespace) -> None:
    """Refuse a network whose weights and average this machine has no memory for.

    Whatever else is wrong with its options is left to be found when it is built.

    Args:
        config: options of a subcommand; a dry run of a bench needs no memory.

    Raises:
        ValueError: if it is too large.
    """
    memory, held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0
    key = next((each for each in TRAINED if each in (config.model.get("init_args") or {})), None)
    network = config.model.get(f"init_args.{key}")
    if config.get("dry_run") or not isinstance(network, Namespace):
        return

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal held
        held += 0 if parameter is None else 2 * parameter.nbytes  # with its average
        if held > memory:
            raise MemoryError

    parser = CommandParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    hook = register_module_parameter_registration_hook(count)
    # Of any class of the user's; what is raised comes again when it is built, and is shown then.
    with suppress(Exception), torch.device("meta"):
        parser.instantiate(Namespace(network=network))  # type: ignore[no-untyped-call]
    hook.remove()
    if held > memory:
        raise ValueError(
            f"model.init_args.{key} must fit into this machine's memory with its average, "
            f"{memory / 1e9:,.0f} GB, got more than {held / 1e9:,.0f} GB; lower its sizes, or the "
            "number of its blocks or classes"
        )
