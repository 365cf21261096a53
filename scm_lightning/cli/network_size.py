# SPDX-License-Identifier: Apache-2.0
"""Is there room for a network? Asked before its weights are.

The network is built on torch's meta device first, where a tensor has a shape and no memory; that
takes milliseconds. Weights are counted as they are registered, so that a network of far too many
layers is not built to its end.
"""

import os
import pkgutil
from contextlib import suppress

import torch
from jsonargparse import Namespace
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from scm_lightning.cli.parsers import OneLineParser
from scm_lightning.modules import GenerativeModule

TRAINED = ("student", "network")
"""Options of the modules that hold the network which is trained."""
MAX_TENSORS = 20_000
"""Weights of a network, each a tensor; the largest published ones have some thousand."""


def check_network_size(config: Namespace) -> None:
    """Refuse a network whose weights and average this machine has no memory for.

    Whatever else is wrong with its options is left to be found when it is built.

    Args:
        config: options of a subcommand; a dry run of a bench needs no memory.

    Raises:
        ValueError: if it is too large.
    """
    options = config.model.get("init_args") or {}
    networks = {key: options[key] for key in TRAINED if isinstance(options.get(key), Namespace)}
    keeps_average = issubclass(pkgutil.resolve_name(config.model.class_path), GenerativeModule)
    if config.get("dry_run") or not (networks and keeps_average):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    num_tensors = num_bytes = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal num_tensors, num_bytes
        num_tensors += 1
        num_bytes += 0 if parameter is None else 2 * parameter.nbytes  # with its average
        if num_bytes > memory or num_tensors > MAX_TENSORS:
            raise MemoryError("too many weights")

    key, network = networks.popitem()
    hook = register_module_parameter_registration_hook(count)
    try:
        with suppress(Exception):  # of any class of the user's; it comes again, and is shown then
            _build_without_memory(network)
    finally:
        hook.remove()
    if num_bytes > memory or num_tensors > MAX_TENSORS:
        raise ValueError(
            f"model.init_args.{key} must fit into this machine's memory with its average, "
            f"{memory / 1e9:,.0f} GB, and have at most {MAX_TENSORS:,} tensors, got more than "
            f"{num_bytes / 1e9:,.0f} GB in {num_tensors:,}; lower its sizes, or the number of its "
            "blocks or classes"
        )


def _build_without_memory(network: Namespace) -> None:
    parser = OneLineParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    with torch.device("meta"):
        parser.instantiate(Namespace(network=network))  # type: ignore[no-untyped-call]
