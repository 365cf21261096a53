# SPDX-License-Identifier: Apache-2.0
"""The log of a run, `metrics.csv`, which continues when the run does.

A row is written behind those that are there, by the columns that the file itself names; a row with
further columns has the file written anew. Rows of steps that are trained once more are moved to
`metrics.old-1.csv`, `-2`, ...

A log is not worth a run: where it cannot be written, because the disk is full or read-only, that is
said once, the rows wait, and are written with later ones as soon as there is room. One that cannot
be read is set aside when it is opened.
"""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from itertools import chain, compress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from scm_lightning.given_files import open_regular
from scm_lightning.saying import say
from scm_lightning.storage.side_files import say_unwritten, set_aside, unused_name
from scm_lightning.whole_files import written_whole

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
        self.rows_at_a_time = flush_logs_every_n_steps

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Writer of the rows."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _KeptRows(self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Put numbers into the row of their step.

        It waits for those that Lightning logs of the same step, and is written with them.
        """
        self.experiment.log_metrics(metrics, step)
        if len(self.experiment.metrics) >= self.rows_at_a_time:
            self.save()

    @rank_zero_only
    def start_from(self, step: int) -> None:
        """Keep the rows up to a step, and those written since this training began; move the rest.

        Args:
            step: optimizer steps that training starts from.
        """
        file, own = Path(self.experiment.metrics_file_path), self.experiment.num_written
        if not file.exists():
            return
        try:
            stays = [_is_before(row, step) for row in _rows(file)]
            stays = [*stays[: len(stays) - own], *[True] * own]
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
        self.experiment.num_written = 0


class _KeptRows(ExperimentWriter):
    """Rows behind those that are there."""

    num_written = 0
    """Since a training began; the last ones of the file."""
    _fails = False

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        """Let a row wait, or numbers join the one of their step that does."""
        super().log_metrics(metrics_dict, step)
        if len({row["step"] for row in self.metrics[-2:]}) < len(self.metrics[-2:]):
            self.metrics[-2:] = [self.metrics[-2] | self.metrics[-1]]

    def save(self) -> None:
        """Write the rows that wait, or leave all as it was."""
        if not self.metrics:
            return
        file = Path(self.metrics_file_path)
        try:
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
        """Set aside a file that is no log; Lightning would remove it, log or not."""
        file = Path(self.metrics_file_path)
        try:
            for row in _rows(file) if os.path.lexists(file) else ():
                _is_before(row, 0)
        except (ValueError, OSError, csv.Error) as error:
            set_aside(file, f"{file} cannot be read as the log of a run: {error}")


def _append(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows behind those of a file, all or none.

    Raises:
        OSError: if they cannot be written.
    """
    columns = _columns(file)
    needed = {*columns}.union(*rows)
    if needed != {*columns} or _is_cut_off(file):
        _write(file, sorted(needed), chain(_rows(file) if columns else (), rows))
        return
    size = file.stat().st_size
    try:
        with file.open("a", newline="", encoding="utf-8") as opened:
            csv.DictWriter(opened, columns).writerows(rows)
    except OSError:
        with suppress(OSError):
            os.truncate(file, size)
        raise


@contextmanager
def _table(file: Path) -> Iterator["csv.DictReader[str]"]:
    """Rows of a log by column, without a last one that a crash has cut off."""
    with TextIOWrapper(open_regular(file), "utf-8-sig", newline="") as opened:  # or with a mark
        table = csv.DictReader(line for line in opened if line.endswith("\n"))
        columns = table.fieldnames or []
        if "step" not in columns or len({*columns}) < len(columns):
            raise ValueError("its first line does not name columns, of which one is step")
        yield table


def _columns(file: Path) -> list[str]:
    """Columns of a log; none if there is no file."""
    if not file.exists():
        return []
    with _table(file) as table:
        return list(table.fieldnames or [])


def _rows(file: Path) -> Iterator[Row]:
    with _table(file) as table:
        for row in table:
            if None in row or None in row.values():
                raise ValueError("a row has other fields than there are columns")
            yield row


def _is_cut_off(file: Path) -> bool:
    """Tell whether a crash has left half a row at the end."""
    with file.open("rb") as opened:
        opened.seek(-1, os.SEEK_END)
        return opened.read() != b"\n"


def _write(file: Path, columns: list[str], rows: Iterable[Row]) -> None:
    with written_whole(file) as beside, beside.open("w", newline="", encoding="utf-8") as opened:
        table = csv.DictWriter(opened, columns)
        table.writeheader()
        table.writerows(rows)


def _is_before(row: Row, step: int) -> bool:
    """Tell whether a row is of the first steps. Lightning's row of step s + 1 has s, ours s + 1."""
    said = int(row["step"])
    return said < step or (said == step > 0 and not row.get("epoch"))
