# SPDX-License-Identifier: Apache-2.0
"""The log of a run, `metrics.csv`, which goes on when the run does.

A row is written behind those that are there, by the columns that the file itself names, so that it
does not matter what has been read of it before; a row with further columns has the file written
anew. Rows of steps that are trained once more are moved to `metrics.old-1.csv`, `-2`, ...

A log is not worth a run: where it cannot be written, because the disk is full or read-only, that is
said once, the rows wait, and are written with later ones as soon as there is room. One that cannot
be read is set aside.
"""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, compress
from pathlib import Path
from typing import IO, Any, cast

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from scm_lightning.given_files import open_regular
from scm_lightning.saying import say
from scm_lightning.storage.side_files import say_unwritten, set_aside, unused_name
from scm_lightning.whole_files import written_whole

DAMAGED = (ValueError, csv.Error)
"""What reading a file that is no log comes to."""
MAX_ROW = 1 << 20
"""Bytes of a row; a thousand columns have a hundredth of it."""

Row = Mapping[str, Any]


class RunLog(CSVLogger):
    """Lightning's CSV log in the run's own folder; an earlier part of the run is kept.

    Lightning's removes it as soon as a training starts.

    Args:
        save_dir: folder of `metrics.csv`.
        flush_logs_every_n_steps: rows that are written at a time.
    """

    def __init__(self, save_dir: str, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(
            save_dir, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps
        )

    @property
    def experiment(self) -> ExperimentWriter:
        """What writes the rows."""
        return self._writer

    @rank_zero_only
    def start_from(self, step: int) -> None:
        """Keep the rows up to a step, and those written since this training began; move the rest.

        Args:
            step: optimizer steps that training starts from.
        """
        file = Path(self._writer.metrics_file_path)
        try:
            try:
                stays = [_is_before(row, step) for row in _rows(file)]
            except FileNotFoundError:
                return
            except (*DAMAGED, OSError) as error:
                set_aside(file, f"{file} cannot be read as the log of a run: {error}")
                return
            if (own := self._writer.num_written) > 0:
                stays[-own:] = [True] * own
            if all(stays):
                return
            aside = unused_name(file)
            if any(stays):
                _write(aside, _columns(file), compress(_rows(file), (not each for each in stays)))
                _write(file, _columns(file), compress(_rows(file), stays))
            else:
                os.replace(file, aside)
        except OSError as error:
            say_unwritten(file, error, f"later rows than those of step {step} stay in it")
        else:
            say(f"training starts at step {step}: later rows of {file} are now in {aside}")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that wait, at the end of a training."""
        super().finalize(status)
        if self._experiment is not None:
            self._writer.num_written = 0

    @property
    def _writer(self) -> "_KeptRows":
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _KeptRows(log_dir=self.log_dir)
        return cast("_KeptRows", self._experiment)


class _KeptRows(ExperimentWriter):
    """Rows behind those that are there."""

    num_written = 0
    """Since a training began; the last ones of the file."""
    _fails = False

    def save(self) -> None:
        """Write the rows that wait, or leave all as it was."""
        if not self.metrics:
            return
        file = Path(self.metrics_file_path)
        try:
            try:
                _append(file, self.metrics)
            except DAMAGED as error:
                set_aside(file, f"{file} cannot be read as the log of a run: {error}")
                _append(file, self.metrics)
        except OSError as error:
            if not self._fails:
                say_unwritten(file, error, "its rows are written once that is repaired")
            self._fails = True
            return
        self.num_written += len(self.metrics)
        self.metrics = []
        self._fails = False

    def _check_log_dir_exists(self) -> None:
        """Leave the file alone, which Lightning removes here."""


def _append(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows behind those of a file, all or none.

    Raises:
        OSError: if they cannot be written.
        ValueError: if the file is no log; csv.Error likewise.
    """
    columns = _columns(file)
    needed = {*columns}.union(*rows)
    if needed != {*columns}:
        _write(file, sorted(needed), chain(_rows(file) if columns else (), rows))
        return
    size = _end_of_rows(file)
    try:
        os.truncate(file, size)
        with file.open("a", newline="", encoding="utf-8") as opened:
            csv.DictWriter(opened, columns).writerows(rows)
    except OSError:
        with suppress(OSError):
            os.truncate(file, size)  # of a row that was cut off
        raise


def _columns(file: Path) -> list[str]:
    """Columns of a log; none if there is no file, or an empty one."""
    try:
        with open_regular(file) as opened:
            columns = next(csv.reader(_lines(opened)), [])
            is_empty = not columns and opened.tell() == 0
    except FileNotFoundError:
        return []
    if not is_empty and ("step" not in columns or len({*columns}) < len(columns)):
        raise ValueError("its first line does not name columns, of which one is step")
    return columns


def _rows(file: Path) -> Iterator[dict[str, str]]:
    """Rows of a log by column, without a last one that a crash has cut off."""
    columns = _columns(file)
    with open_regular(file) as opened:
        rows = csv.reader(_lines(opened))
        next(rows, None)
        for fields in filter(None, rows):
            if len(fields) != len(columns):
                raise ValueError(f"a row has {len(fields)} fields for {len(columns)} columns")
            yield dict(zip(columns, fields, strict=True))


def _lines(opened: IO[bytes]) -> Iterator[str]:
    """Lines of a file that end."""
    while (line := opened.readline(MAX_ROW)).endswith(b"\n"):
        if b"\0" in line:
            raise ValueError("it holds bytes that are 0")
        yield line.decode("utf-8-sig")  # some programs begin a file with a mark
    if len(line) == MAX_ROW:
        raise ValueError(f"it has a line of more than {MAX_ROW:,} bytes")


def _end_of_rows(file: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    with open_regular(file) as opened:
        size = opened.seek(0, os.SEEK_END)
        for length in (1, MAX_ROW):
            start = opened.seek(max(size - length, 0))
            if (end := opened.read(length).rfind(b"\n")) >= 0:
                return start + end + 1
    return 0


def _write(file: Path, columns: list[str], rows: Iterable[Row]) -> None:
    with written_whole(file) as beside, beside.open("w", newline="", encoding="utf-8") as opened:
        table = csv.DictWriter(opened, columns)
        table.writeheader()
        table.writerows(rows)


def _is_before(row: Row, step: int) -> bool:
    """Whether a row is of the first steps. Lightning's row of step s + 1 says s, ours s + 1."""
    said = int(row["step"])
    return said < step or (said == step > 0 and not row.get("epoch"))
