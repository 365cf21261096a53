# SPDX-License-Identifier: Apache-2.0
"""The configuration that a run keeps: what files and options gave, in `config.yaml`.

Nothing is in it that was derived, so that everything follows `trainer.default_root_dir`; and of
that it means the folder that the file lies in, so that a run can be moved, copied and renamed.
"""

import inspect
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from scm_lightning.cli.strict_yaml import text_of
from scm_lightning.given_files import given_path
from scm_lightning.saying import say

FILE = "config.yaml"
HEADER = "# The run in this folder: its trainer.default_root_dir is where this file lies.\n"
ROOT = "trainer.default_root_dir"
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
OF_A_START = {"ckpt_path": None, "fresh": False}
"""Options of how one process starts, not of the run, with the values that are kept."""


def typed(config: Namespace) -> Namespace:
    """A copy of a configuration for a run to keep.

    Args:
        config: as files and options gave it.
    """
    kept = config.clone()
    for key, value in OF_A_START.items():
        kept[key] = value
    for key, value in config.items():
        if inspect.isfunction(value):  # a default, such as the optimizer's, that YAML cannot say
            del kept[key]
    return kept


def of_its_folder(config: Namespace, file: Path) -> None:
    """Let the configuration that a run keeps be that of the folder it lies in.

    Args:
        config: what the file gives; changed.
        file: the file.
    """
    named = config.get(ROOT) or "."
    if not text_of(file).startswith(HEADER) and not _has_derived_paths(config, named):
        return
    folder = str(file.parent)
    if Path(named).expanduser().resolve() != file.parent.resolve():
        config[ROOT] = folder
        say(
            f"{file} is the configuration of the run in its folder, which was {named}: {ROOT} is "
            f"{folder}, if no other is given"
        )


def _has_derived_paths(config: Namespace, root: str) -> bool:
    """Tell whether version 0.3.0 kept it, with derived paths; take these out."""
    if config.get("checkpoints.dirpath") != str(Path(root) / "checkpoints"):
        return False
    config["checkpoints.dirpath"] = None
    logger = config.get("trainer.logger")
    if isinstance(logger, Namespace) and Path(str(logger.get("init_args.save_dir"))) == Path(root):
        config["trainer.logger"] = None
    return True


def spelled_out(value: Any) -> Any:
    """A configuration with `~` as the home, wherever a text begins with it.

    Args:
        value: a configuration, or a part of one; changed, if it can be.

    Returns:
        The same, or a text in its place.

    Raises:
        ValueError: if a text holds the name of a variable, `$NAME`.
    """
    if isinstance(value, str):
        return given_path(value)
    inner = vars(value) if isinstance(value, Namespace) else value
    if isinstance(inner, dict | list):
        for key, each in list(inner.items() if isinstance(inner, dict) else enumerate(inner)):
            inner[key] = spelled_out(each)
    return value
