# SPDX-License-Identifier: Apache-2.0
"""Values of options that the parser takes, and should not: refused before anything is built.

Where a type is a function, such as one that makes the optimizer, the parser takes the name of any
function, with arguments, and calls it: `class_path: torch.save` would write a file.
"""

import inspect
import pkgutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from scm_lightning.given_files import given_path

MAX_SEED = 2**32 - 1
LEAST = {
    "accumulate_grad_batches": 1,
    "log_every_n_steps": 0,
    "gradient_clip_val": 0,
}
"""Smallest values of numbers of the trainer, which it would divide by or run without."""
FLOAT16 = ("16-mixed", "16", 16)
"""Spellings of float16 autocast with a loss scale."""


def check_options(config: Namespace) -> None:
    """Refuse functions in the place of classes, and values that no run can have.

    Args:
        config: options of a subcommand.

    Raises:
        ValueError: if a class_path is no class's, or its dict_kwargs are not, an option is out of
            range, or a CPU is to compute in float16.
    """
    for spec in specs(config):
        _check_class(spec["class_path"], spec.get("dict_kwargs") or {}, spec.get("init_args") or {})
    seed = config.seed_everything
    if not isinstance(seed, bool) and seed is not None and not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed_everything must be from 0 to {MAX_SEED}, got {seed}; give another")
    for name, least in LEAST.items():
        value = config.trainer[name]
        if value is not None and not value >= least:
            raise ValueError(f"trainer.{name} must be at least {least}, got {value}; raise it")
    if config.trainer.enable_checkpointing is False and not config.trainer.fast_dev_run:
        raise ValueError(
            "trainer.enable_checkpointing must stay true, since a run continues from its "
            "checkpoints, got false; --trainer.fast_dev_run true tries one step and writes none"
        )
    if config.trainer.val_check_interval == 0:
        raise ValueError(
            "trainer.val_check_interval must be above 0, got 0; give a number of steps, or "
            "--trainer.limit_val_batches 0 for no validation"
        )
    if _is_float16_on_cpu(config.trainer) and not config.get("dry_run"):  # of a run elsewhere
        raise ValueError(
            "trainer.precision 16-mixed needs a GPU, got a CPU, where Lightning would run "
            "bf16-mixed without a word; pass --trainer.precision bf16-mixed or 32-true"
        )


def check_writable(root: str) -> None:
    """Refuse a folder of a run that cannot be made or written to; nothing is left in it.

    Args:
        root: the folder, which may be missing.

    Raises:
        ValueError: if no file can be made in it, or in the nearest folder above that is there.
    """
    folder = Path(given_path(root)).absolute()
    try:
        with tempfile.TemporaryFile(
            dir=next(each for each in (folder, *folder.parents) if each.exists())
        ):
            pass
    except OSError as error:
        raise ValueError(
            f"trainer.default_root_dir must be a folder that can be written to, got {root}: "
            f"{error.strerror}; give another"
        ) from error


def _is_float16_on_cpu(trainer: Namespace) -> bool:
    automatic = trainer.accelerator == "auto" and not torch.accelerator.is_available()
    return trainer.precision in FLOAT16 and (automatic or trainer.accelerator == "cpu")


def specs(value: Any) -> Iterator[dict[str, Any]]:
    """Every map with a class_path in a configuration, or in a part of one."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from specs(each)


def _check_class(path: str, dict_kwargs: Collection[str], init_args: Mapping[str, Any]) -> None:
    """Refuse functions, and arguments that a class does not take: the parser believes all three."""
    kind = pkgutil.resolve_name(path)
    if not inspect.isclass(kind):
        raise ValueError(f"class_path must name a class, got {path}; write one around it")
    parameters = inspect.signature(kind).parameters.values()
    for each in parameters:
        takes_null = each.default in (None, each.empty) or "None" in str(each.annotation)
        if not takes_null and init_args.get(each.name, each.default) is None:
            raise ValueError(f"{each.name} of {path} must not be null; leave it out instead")
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    for name in dict_kwargs:
        if name not in {each.name for each in parameters}:
            raise ValueError(
                f"dict_kwargs must be arguments of {path}, which takes no {name}; take it out"
            )
