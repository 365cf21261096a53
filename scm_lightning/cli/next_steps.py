# SPDX-License-Identifier: Apache-2.0
"""Next commands to type: lines that run as they are printed, on this machine."""

import re
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_lightning.callbacks import RunLog
from scm_lightning.cli.run_config import FILE
from scm_lightning.cli.strict_yaml import read_yaml
from scm_lightning.cli.templates import FEATURES, FOLDER, NETWORKS, for_data, for_student, value_of
from scm_lightning.data.index import ShardIndex
from scm_lightning.data.prompts import TEXT
from scm_lightning.saying import say

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

OF_A_RUN = ("checkpoints/last.ckpt", "metrics.csv", "samples", FILE)
"""Files that a training leaves in its folder, where it has all of them."""


def command(*words: str) -> str:
    """A command line of `scm` to copy.

    Args:
        words: what comes after the program's name, unquoted.
    """
    return f"{_program()} {shlex.join(words)}"


def say_next(*commands: str | None) -> None:
    """Print commands to type next, one a line.

    Args:
        commands: the commands; None is left out.
    """
    begin = "next: "
    for line in filter(None, commands):
        say(f"{begin}{line}")
        begin = " " * len(begin)


def after_training(config: Mapping[str, Any], loggers: Iterable["Logger"] = ()) -> None:
    """Say what a run has left, and how to look at it.

    Args:
        config: its configuration.
        loggers: those that it had.
    """
    folder = folder_of(config)
    if not Path(checkpoint_of(config)).exists():
        say(f"nothing was trained, so {folder} has no checkpoint")
        return
    found = [name for name in OF_A_RUN if (folder / name).exists()]
    say(f"{folder} holds {', '.join(found)}")
    others = (each for each in loggers if not isinstance(each, RunLog))
    for place in filter(None, (each.log_dir or each.save_dir for each in others)):
        say(f"its log is in {place}")
    say_next(scores_of(config), pictures_of(config), student_of(config, checkpoint_of(config)))


def training_on(folder: str, index: ShardIndex) -> str:
    """The command that trains on shards, or what to set where no configuration is for them.

    Args:
        folder: folder of the shards.
        index: its index.
    """
    if not index.are_clips and (words := for_data(folder, index)):
        return command("fit", *words)
    template = "moving_digits_teacher.yaml" if index.are_clips else "*_teacher.yaml"
    text = index.conditions.get(TEXT)
    of_text = f", text_channels: {text.shape[-1]}" if text else ""
    return (
        f"no configuration here is for data of shape {index.shape}; copy "
        f"configs/{template} and set its network's data_shape: {[*index.shape]}{of_text} and "
        f"num_classes: {index.num_classes}, and root: {folder} of its data"
    )


def fit_instead(words: Sequence[str], own: Collection[str]) -> str:
    """The command that trains what another one has measured.

    Args:
        words: its arguments, after the subcommand.
        own: options that are not those of `scm fit`.
    """
    kept: list[str] = []
    is_own = False
    for word in words:
        if word.startswith("--"):
            is_own = re.split(r"[=.]", word[2:])[0] in own
        if not is_own:
            kept.append(word)
    return command("fit", *kept)


def scores_of(config: Mapping[str, Any], *options: str) -> str | None:
    """The command for the table of scores of a run; None, if it measures none."""
    of_text = (value_of(config, f"{key}.init_args.text_channels") for key in NETWORKS)
    measures = value_of(config, FEATURES) or any(of_text)  # words are scored without features too
    return _stage("test", config, options) if measures else None


def pictures_of(config: Mapping[str, Any], *options: str) -> str:
    """The command for pictures of a run's samples."""
    return _stage("predict", config, options)


def export_of(config: Mapping[str, Any], weights: str) -> str:
    """The command for the network of a run alone, from its checkpoint."""
    out = str(folder_of(config) / "network.safetensors")
    return command("export", "--checkpoint", weights, "--out", out)


def student_of(config: Mapping[str, Any], weights: str) -> str | None:
    """The command that distils a teacher; None, if a run is none, or has a network of its own.

    Args:
        config: configuration of the run.
        weights: its checkpoint or export.
    """
    words = for_student(config, weights)
    return None if words is None else command("fit", *words)


def folder_of(config: Mapping[str, Any]) -> Path:
    """Folder of a run."""
    return Path(value_of(config, FOLDER) or ".")


def checkpoint_of(config: Mapping[str, Any]) -> str:
    """Last checkpoint of a run."""
    folder = value_of(config, "checkpoints.dirpath") or folder_of(config) / "checkpoints"
    return str(Path(folder) / "last.ckpt")


def run_in(folder: Path) -> dict[str, Any] | None:
    """The configuration that a run has left in its folder, with that folder; None without one."""
    if not (folder / FILE).is_file():
        return None
    content = read_yaml(folder / FILE)
    content.setdefault("trainer", {})["default_root_dir"] = str(folder)
    return dict(content)


def _stage(name: str, config: Mapping[str, Any], options: tuple[str, ...]) -> str:
    """A command on the configuration that lies in the run's folder."""
    if value_of(config, "checkpoints.dirpath") and "--ckpt_path" not in options:
        options = (*options, "--ckpt_path", checkpoint_of(config))
    return command(name, "--config", str(folder_of(config) / FILE), *options)


def _program() -> str:
    """Name to call this program by, so that a shell finds the same one again."""
    found = shutil.which("scm")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "scm"
    if Path(sys.argv[0]).stem == "scm":
        return shlex.quote(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m scm_lightning"
