# SPDX-License-Identifier: Apache-2.0
"""Start of `scm fit`: from the newest checkpoint of the run's folder, or from nothing.

The same command, given again, continues the run; what makes it another run has to be said. So a
run that is finished is left alone, and `--fresh` sets the old checkpoints aside and starts anew.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, get_loader

from scm_lightning.cli.run_config import HEADER, OF_A_START
from scm_lightning.cli.strict_yaml import read_yaml, text_of
from scm_lightning.core import steps_of
from scm_lightning.saying import say, show
from scm_lightning.storage import Checkpoint, History, SavedRun
from scm_lightning.storage.saved_run import METADATA_KEY
from scm_lightning.storage.side_files import set_aside

LAST = "last"
"""Value of ckpt_path for the newest checkpoint of the run; the default."""
SEED = "seed_everything"
OTHER_RUN = (SEED, "model.", "data.class_path")
"""Keys that a finished run cannot take over: with another value it would be another run."""
ABSENT = "-"
"""In the table, for an option that one of two configurations does not have."""
DERIVED_BY_0_3_0 = (
    "checkpoints.dirpath",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.check_val_every_n_epoch",
)
"""Options that version 0.3.0 wrote into `config.yaml` though nobody had given them."""
LENGTHS = ("steps", "total_steps", "ramp_steps", "ref_steps", "start", "end")
"""Options of the model that steps, a share and null can say alike."""
MOST_ROWS = 20


class AlreadyTrained(Exception):  # noqa: N818  nothing is wrong
    """The run has taken all its steps: nothing is to be done, and nothing is wrong."""


def starting_point(config: Namespace, current: str, saved: Path) -> str | None:
    """Choose the checkpoint that a training continues from; say which, and what has changed.

    Args:
        config: options of `scm fit`.
        current: the same as YAML.
        saved: the run's `config.yaml`, which may be missing.

    Returns:
        The checkpoint, or None for a start from nothing.

    Raises:
        AlreadyTrained: if the run is finished.
        ValueError: if there is no such checkpoint, none that is not damaged, or if the folder's run
            is another one.
    """
    given = None if config.ckpt_path == LAST else config.ckpt_path
    if config.fresh and given is not None:
        raise ValueError(f"fresh starts from nothing, ckpt_path from {given}; give one of the two")
    if given is not None:
        _refuse_reconstructed(SavedRun.read(given).path)
        return str(given)
    if config.fresh or config.trainer.fast_dev_run:
        return None
    folder = Path(config.checkpoints.dirpath or saved.parent / "checkpoints")
    file, step, damaged = History(folder).newest()
    for _, reason in damaged:
        say(reason)
    if file is None:
        if damaged:
            raise ValueError(
                f"all checkpoints in {folder} are damaged; put a whole one there, or start "
                "anew with --fresh, which moves these aside"
            )
        return None
    _refuse_reconstructed(file)
    changes = differences(saved, current)
    _check_is_same_run(config, step, file, changes)
    say(f"continuing from {file}, step {step}")
    if changes:
        _show(changes)
    return str(file)


def differences(saved: Path, current: str) -> dict[str, tuple[str, str]]:
    """Options whose values are not those that the run was started with.

    Args:
        saved: the run's `config.yaml`; nothing differs from a missing one.
        current: configuration as YAML.

    Returns:
        Old and new value by dotted key; `ABSENT` for an option that one of them does not have.
    """
    found: dict[str, tuple[str, str]] = {}

    def compare(before: Any, now: Any, key: str) -> None:
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            for name in sorted({*before} | {*now}, key=str):
                values = before.get(name, ABSENT), now.get(name, ABSENT)
                compare(*values, f"{key}.{name}" if key else str(name))
        elif before == now or (before, now) == (ABSENT, None) or key in left_out:
            return
        elif key.rpartition(".")[2] not in LENGTHS or not _are_same_length(before, now, ends):
            found[key] = (str(before), str(now))

    earlier, derived = _read_or_set_aside(saved)
    left_out = {*OF_A_START, *derived}
    if earlier is not None:
        later = get_loader("yaml")(current)
        ends = [dict(each.get("trainer") or {}).get("max_steps") for each in (earlier, later)]
        compare(earlier, later, "")
    return found


def _are_same_length(before: Any, now: Any, ends: Iterable[Any]) -> bool:
    """Tell whether steps, a share or null come to the same number in runs of these lengths."""
    try:
        pairs = zip((before, now), ends, strict=True)
        return len({steps_of(length, "", end) for length, end in pairs}) == 1
    except (TypeError, ValueError):  # no lengths, or of runs without a number of steps
        return False


def _read_or_set_aside(saved: Path) -> tuple[dict[str, Any] | None, Collection[str]]:
    """The run's `config.yaml`, None if there is none; and which of its options nobody has given.

    It is written anew, so one that cannot be read is moved out of the way, and the run continues.
    """
    if not os.path.lexists(saved):
        return None, ()
    try:
        content, is_ours = read_yaml(saved), text_of(saved).startswith(HEADER)
        if not isinstance(content, dict):
            raise ValueError(f"{saved} must hold a map of options")
    except (OSError, ValueError) as error:
        with suppress(FileNotFoundError):  # another process of the run was faster
            set_aside(saved, f"changed options cannot be shown, since {error}")
        return None, ()
    return content, () if is_ours else DERIVED_BY_0_3_0


def _refuse_reconstructed(file: Path) -> None:
    """Refuse what `scm reconstruct` or `scm convert` wrote, which a run can't continue with."""
    if file.is_dir():
        return  # these are files; to read a folder would load all of its weights
    metadata = Checkpoint(file).read(mmap=True).get(METADATA_KEY, {})
    if "converted" in metadata:
        raise ValueError(
            f"a run cannot continue from {file}, which `scm convert` wrote: it has no optimizer's "
            f"state; begin with it in a folder of its own: --model.init_args.init {file} "
            "--trainer.default_root_dir FOLDER"
        )
    if "reconstructed" in metadata:
        raise ValueError(
            f"a run cannot continue from {file}, which `scm reconstruct` wrote to sample from; "
            "give a checkpoint of the run itself"
        )


def _check_is_same_run(
    config: Namespace, step: int, file: Path, changes: Mapping[str, tuple[str, str]]
) -> None:
    """Refuse another run in the folder of this one; stop if there is nothing to train."""
    anew = "start anew with --fresh, or give another trainer.default_root_dir"
    if SEED in changes:
        old, new = changes[SEED]
        raise ValueError(
            f"the run of {file} has {SEED} {old}, got {new}: continue with {old}, or {anew}"
        )
    max_steps = config.trainer.max_steps
    if max_steps < 0 or step < max_steps:
        return
    others = [
        key
        for key, values in changes.items()
        # Another version of this package has more options, at what was done without them.
        if key.startswith(OTHER_RUN) and ABSENT not in values
    ]
    if others:
        _show(changes)
        raise ValueError(
            f"{file} is at step {step} of {max_steps}, trained with another "
            f"{', '.join(others[:3])}: {anew}"
        )
    raise AlreadyTrained(
        f"already at step {step} of {max_steps}: {file}; to train on raise trainer.max_steps, or "
        f"{anew}"
    )


def _show(changes: Mapping[str, tuple[str, str]]) -> None:
    rows = [(key, *values) for key, values in changes.items()]
    more = [(f"and {len(rows) - MOST_ROWS} more", "", "")] if len(rows) > MOST_ROWS else []
    show(("changed option", "so far", "now"), rows[:MOST_ROWS] + more)
