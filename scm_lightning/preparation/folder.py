# SPDX-License-Identifier: Apache-2.0
"""A folder of shards while it is being written: who writes, what for, and what is finished.

    FOLDER/.preparation/lock                 held by the process that writes
    FOLDER/.preparation/plan.json            settings of the plan, and their digest
    FOLDER/train-000012.tar                  a shard, which appears whole
    FOLDER/.preparation/train-000012.json    its record, which appears after it
    FOLDER/preparation.json                  at the end: the settings, and what was left out
    FOLDER/null.text.npy                     the tokens of no text, where these are any
    FOLDER/shards.json                       at last: the folder is complete
    FOLDER/.preparation                      is then removed

A process can end at any moment, also by `kill -9` or a power cut: a shard with a record is kept,
all others are written again, to the same bytes.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from scm_lightning.data.index import INDEX_FILE, MAX_INDEX_BYTES, Shard, ShardIndex
from scm_lightning.given_files import read_regular
from scm_lightning.preparation.content import Moments
from scm_lightning.preparation.plan import ORDER, Plan, PlannedShard
from scm_lightning.whole_files import lock_file, write_whole

WORK_FOLDER = ".preparation"
PLAN_FILE = "plan.json"
BAD_JSON = (ValueError, LookupError, TypeError, ArithmeticError, RecursionError)
"""Errors of reading what is not JSON, or JSON that holds other things than were written."""
ACCOUNT_FILE = "preparation.json"
"""File that tells how the shards were made; stays with them."""
LEFTOVERS = ("*.part", f"{WORK_FOLDER}/*.part")
"""Files that were being written when the process ended."""


@dataclass(frozen=True)
class Record:
    """Record of a finished shard.

    Args:
        shard: what the index says of it; None, and no file, if none of its images can be read.
        moments: sums of its data, for mean and deviation.
        unreadable: images that it lacks, each with the reason.
    """

    shard: Shard | None
    moments: Moments
    unreadable: list[str]


@contextmanager
def begun(folder: Path, plan: Plan) -> Iterator["PreparationFolder"]:
    """The right to write one folder, for as long as the context lasts.

    Args:
        folder: where the shards are to be.
        plan: what is to be written.

    Raises:
        ValueError: if the folder holds something else, was begun with another plan, or another
            process writes it.
        OSError: if it cannot be written.
    """
    work = folder / WORK_FOLDER
    if not work.is_dir():
        refuse_foreign_files(folder)
    work.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        file = work / PLAN_FILE
        if file.is_file():
            _check_plan(folder, file, plan)
        else:
            _write_plan(file, plan)
        for leftover in (leftover for each in LEFTOVERS for leftover in folder.glob(each)):
            leftover.unlink()
        yield PreparationFolder(folder, plan)


class PreparationFolder(NamedTuple):
    """The account of what is written.

    Attributes:
        folder: where the shards are to be.
        plan: what is to be written.
    """

    folder: Path
    plan: Plan

    def record_of(self, planned: PlannedShard) -> Record | None:
        """The record of a shard if it is finished, and its file there and whole by its size.

        A damaged record does not count: the shard is written again, to the same bytes.
        """
        try:
            fields = json.loads(read_regular(self._record_file(planned), MAX_INDEX_BYTES))
            shard = None if fields["shard"] is None else Shard(**fields["shard"])
            num, sums, squares = fields["moments"]
            moments = Moments(int(num), [float(x) for x in sums], [float(x) for x in squares])
            record = Record(shard, moments, [str(each) for each in fields["unreadable"]])
        except (FileNotFoundError, *BAD_JSON):
            return None
        file = self.folder / planned.name
        size = file.stat().st_size if file.is_file() else None
        return record if size == (shard and shard.num_bytes) else None

    def keep(self, planned: PlannedShard, record: Record) -> None:
        """Note that a shard is finished."""
        write_whole(self._record_file(planned), json.dumps(asdict(record)) + "\n")

    def finish(self, index: ShardIndex, unreadable: Sequence[str]) -> None:
        """Write what makes the folder complete, and remove what was only for the work."""
        _write_plan(self.folder / ACCOUNT_FILE, self.plan, unreadable=unreadable)
        index.write(self.folder)
        remove_work(self.folder)

    def _record_file(self, planned: PlannedShard) -> Path:
        return self.folder / WORK_FOLDER / f"{Path(planned.name).stem}.json"


def read_account(folder: Path, plan: Plan) -> list[str] | None:
    """Check whether a folder is complete already.

    Args:
        folder: a folder of shards, or none.
        plan: what it should hold.

    Returns:
        The images that were left out of it, each with the reason; None if there is no index yet.

    Raises:
        ValueError: if it holds something else, or shards are missing.
    """
    if not (folder / INDEX_FILE).is_file():
        return None
    file = folder / ACCOUNT_FILE
    if not file.is_file():
        raise ValueError(
            f"{folder} holds shards that scm prepare did not write; give another folder, or remove "
            "it"
        )
    unreadable = _check_plan(folder, file, plan).get("unreadable")
    if not isinstance(unreadable, list):
        raise ValueError(f"{file} is damaged: it does not list the unreadable; remove {folder}")
    if damage := ShardIndex.read(folder).damage(folder):
        raise ValueError(f"{damage[0]}; remove {folder} and run the same command again")
    remove_work(folder)
    return unreadable


def remove_work(folder: Path) -> None:
    """Remove what was only for the work. The folder is complete with and without it."""
    shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)


def refuse_foreign_files(folder: Path) -> None:
    """Refuse a place that holds other files.

    Raises:
        ValueError: if it does.
    """
    with suppress(FileNotFoundError):
        if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
            raise ValueError(f"{folder} must be a folder, got a file; give another place")
        if names := sorted({each.name for each in folder.iterdir()} - {WORK_FOLDER}):
            raise ValueError(
                f"{folder} must be a new or empty folder, or one that scm prepare has begun, got "
                f"{len(names)} other files such as {names[0]}; give another folder, or remove them"
            )


def _locked(folder: Path) -> BinaryIO:
    """Lock a folder for as long as the file that is returned stays open."""
    file = folder / WORK_FOLDER / "lock"
    try:
        lock = lock_file(file)
    except BlockingIOError as error:
        raise ValueError(
            f"{folder} is being prepared by another process; wait for it, or end it and run the "
            "same command again"
        ) from error
    # Whoever finishes removes the file; a lock on what is no longer there holds nobody off.
    if not (file.exists() and os.path.samestat(os.fstat(lock.fileno()), file.stat())):
        lock.close()
        raise ValueError(f"another process has just finished {folder}; run the same command again")
    return lock


def _write_plan(file: Path, plan: Plan, **more: object) -> None:
    content = {"digest": plan.digest, "settings": plan.settings, **more}
    write_whole(file, json.dumps(content, indent=2) + "\n")


def _check_plan(folder: Path, file: Path, plan: Plan) -> dict[str, Any]:
    """Read what a folder was begun with, and refuse another plan."""
    try:
        fields: dict[str, Any] = json.loads(read_regular(file, MAX_INDEX_BYTES))
        begun, digest = dict(fields["settings"]), fields["digest"]
    except BAD_JSON as error:
        raise ValueError(f"{file} is damaged: {error}; remove {folder}") from error
    if digest != plan.digest:
        raise ValueError(
            f"{folder} was prepared with other settings: {_differences(begun, plan.settings)}; "
            "give those, or another folder, or remove this one"
        )
    return fields


def _differences(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Settings that differ, each as it was and as it is."""
    wanted = json.loads(json.dumps(wanted))  # tuples are lists in a file
    names = [
        name for name in sorted(begun.keys() | wanted.keys()) if begun.get(name) != wanted.get(name)
    ]
    told = [name for name in names if name != ORDER] or names  # it follows from the others
    return ", ".join(
        f"{name} was {_short(begun.get(name))} and is {_short(wanted.get(name))}" for name in told
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
