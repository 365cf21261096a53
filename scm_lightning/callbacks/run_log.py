# SPDX-License-Identifier: Apache-2.0
"""The log of a run, `metrics.csv`, which goes on when the run does.

A log is not worth a run: where it cannot be written, because the disk is full or read-only, that is
said once, the rows wait, and are written with later ones as soon as there is room.
"""

import csv
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import cast

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from scm_lightning.whole_files import written_whole


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
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _KeptRows(log_dir=self.log_dir)
        return cast("ExperimentWriter", self._experiment)

    @rank_zero_only
    def start_from(self, step: int) -> None:
        """Keep the rows up to a step, and write behind them.

        Args:
            step: optimizer steps that training starts from; 0 for an empty log.
        """
        writer = self.experiment
        file = Path(writer.metrics_file_path)
        if not file.is_file():
            return
        try:
            keys, rows = _read(file)
            kept = [row for row in rows if _is_before(row, step)]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"{file} is no log of a run, or a damaged one; move it away"
            ) from error
        if not kept:
            file.unlink()
            return
        _write(file, keys, kept)
        writer.metrics_keys = keys


class _KeptRows(ExperimentWriter):
    """Rows behind those that are there."""

    _fails = False

    def save(self) -> None:
        """Write the rows that wait, or leave all as it was."""
        file, keys = Path(self.metrics_file_path), list(self.metrics_keys)
        size = None
        try:
            size = file.stat().st_size if file.is_file() else None
            super().save()
            self._fails = False
        except OSError as error:
            self.metrics_keys = keys
            if size is not None:
                with suppress(OSError):
                    os.truncate(file, size)  # of a row that was cut off
            if not self._fails:
                say_unwritten(file, error, "its rows are written once that is repaired")
            self._fails = True

    def _check_log_dir_exists(self) -> None:
        """Leave the file alone, which Lightning removes here."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Add columns; beside the file, since a crash would take all of it with it."""
        file = Path(self.metrics_file_path)
        _write(file, fieldnames, _read(file)[1])


def say_unwritten(file: Path, error: OSError, then: str) -> None:
    """Say on one line that a file which the run can do without could not be written.

    Args:
        file: the file.
        error: what failed.
        then: what follows from it.
    """
    line = f"scm: {file} could not be written: {error.strerror}; the run goes on, {then}"
    print(line, file=sys.stderr, flush=True)


def _read(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows, without a last one that a crash has cut off."""
    whole = file.read_text().rpartition("\n")[0]
    reader = csv.DictReader(whole.splitlines())
    return list(reader.fieldnames or []), list(reader)


def _write(file: Path, keys: list[str], rows: list[dict[str, str]]) -> None:
    with written_whole(file) as beside, beside.open("w", newline="") as opened:
        table = csv.DictWriter(opened, keys)
        table.writeheader()
        table.writerows(rows)


def _is_before(row: dict[str, str], step: int) -> bool:
    """Whether a row is of the first steps. Lightning's row of step s + 1 says s, ours s + 1."""
    said = int(row["step"])
    return said < step or (said == step > 0 and not row.get("epoch"))
