# SPDX-License-Identifier: Apache-2.0
"""Is there room for a network? Asked before its weights are.

The network is built on torch's meta device first, where a tensor has a shape and no memory; that
takes milliseconds. Weights are counted as they are registered, so that a network of far too many
layers is not built to its end.
"""

import os
import pkgutil
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

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
    if config.get("dry_run") or not _is_ours(config.model):
        return
    options = config.model.init_args
    key = next((name for name in TRAINED if isinstance(options.get(name), Namespace)), None)
    if key is None:
        return
    weights = _Weights(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    hook = register_module_parameter_registration_hook(weights.count)
    try:
        with suppress(Exception):  # of any class of the user's; it comes again, and is shown then
            _build_without_memory(options[key])
    finally:
        hook.remove()
    if weights.are_too_many():
        raise ValueError(
            f"model.init_args.{key} must fit into this machine's memory with its average, "
            f"{weights.memory / 1e9:,.0f} GB, and have at most {MAX_TENSORS:,} tensors, got more "
            f"than {2 * weights.num_bytes / 1e9:,.0f} GB in {weights.num_tensors:,}; lower its "
            "sizes, or the number of its blocks or classes"
        )


@dataclass
class _Weights:
    """Parameters of a network so far.

    Args:
        memory: of this machine. Bytes.
    """

    memory: int
    num_tensors: int = 0
    num_bytes: int = 0

    def are_too_many(self) -> bool:
        """Whether there is no memory for them and their average, or no end of them."""
        return 2 * self.num_bytes > self.memory or self.num_tensors > MAX_TENSORS

    def count(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        """Count one more; end the building of a network that is too large."""
        if parameter is not None:
            self.num_tensors += 1
            self.num_bytes += parameter.numel() * parameter.element_size()
        if self.are_too_many():
            raise MemoryError("too many weights")


def _is_ours(model: Any) -> bool:
    """Whether a module keeps an average of the network that it trains."""
    kind = pkgutil.resolve_name(model.class_path)
    return isinstance(kind, type) and issubclass(kind, GenerativeModule)


def _build_without_memory(network: Namespace) -> None:
    parser = OneLineParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    with torch.device("meta"):
        parser.instantiate(Namespace(network=network))  # type: ignore[no-untyped-call]
