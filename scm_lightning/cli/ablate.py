# SPDX-License-Identifier: Apache-2.0
"""`scm ablate`: variants of a configuration over several seeds, in one table and one plot.

Every stage of every run is a process of its own, so that a run that crashes is a row of the table
and not the end of the others. What is finished is kept when the command is called again.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from subprocess import STDOUT, Popen

import torch

from scm_lightning.cli.ablation import Ablation, Overrides, Run, trials
from scm_lightning.cli.ablation_report import (
    CURVES_FILE,
    cells,
    collect,
    failures,
    legend,
    markdown,
    plot,
)
from scm_lightning.cli.early_signals import EXIT_CODES, handed_on
from scm_lightning.cli.next_steps import pictures_of, run_in, say_next
from scm_lightning.cli.parsers import CommandParser
from scm_lightning.given_files import given_path
from scm_lightning.saying import counted, say, show
from scm_lightning.whole_files import write_picture, write_whole


def parse(words: Sequence[str]) -> Ablation:
    """Read an ablation from the command line and its configuration.

    Args:
        words: arguments after `ablate`.

    Raises:
        ValueError: if they do not fit.
    """
    parser = CommandParser(prog="scm ablate")
    parser.add_argument("--config", action="config", help="configuration of the ablation")
    parser.add_class_arguments(Ablation)
    # As plain values: instantiated, the classes that overrides name would be objects of this
    # process, and not options of the runs.
    options = parser.parse_args(list(words)).as_dict()
    del options["config"]
    paths = {name: options.pop(name) for name in ("base", "teacher", "root")}
    options |= {name: path and given_path(path) for name, path in paths.items()}
    common = Overrides(**options.pop("common"))
    variants = {name: Overrides(**each) for name, each in options.pop("variants").items()}
    return Ablation(variants=variants, common=common, **options)


def ablate(words: Sequence[str]) -> None:
    """Parse an ablation, run what is not finished, write the results.

    Args:
        words: arguments after `ablate`.

    Raises:
        ValueError: if what the user passed does not fit.
    """
    ablation = parse(words)
    planned, root = trials(ablation), Path(ablation.root)
    runs = [trial.run for trial in planned]
    students = [run for run in runs if not run.is_recorded(finished=True)]
    teachers = {run.teacher.folder: run.teacher for run in students if run.teacher is not None}
    unfinished = [run for run in teachers.values() if not run.is_recorded(finished=True)]
    say(f"{ablation.title}: {len(runs) - len(students)} of {len(runs)} runs are finished")
    failed: dict[Path, str] = {}
    planned_now = len(unfinished) + len(students)
    with counted("runs", planned_now) as advance, handed_on() as received:

        def run_one(run: Run) -> None:
            if not received:
                advance(words=run.name)
                _run(run, ablation.jobs, failed, received)
                advance(1, run.name)

        for batch in (unfinished, students):
            with ThreadPoolExecutor(ablation.jobs) as pool:
                list(pool.map(run_one, batch))
    if received:
        raise SystemExit(EXIT_CODES[received[0]])
    results = collect(ablation, planned, failed)
    write_whole(root / "results.json", json.dumps(results, indent=2) + "\n")
    write_whole(root / "table.md", markdown(results))
    is_drawn = write_picture(root / "plot.png", lambda: plot(results))
    show(*cells(results), title=ablation.title, caption=legend(results), caption_justify="left")
    for line in (ablation.question, *failures(results)):
        say(line)
    files = "table.md, results.json and plot.png" if is_drawn else "table.md and results.json"
    say(f"written to {root}/{files}")
    if all(run.folder in failed for run in runs):
        raise ValueError(f"no run of the ablation has finished: {next(iter(failed.values()))}")
    finished = (run.folder for run in runs if run.folder not in failed)
    say_next(*(pictures_of(config) for config in map(run_in, islice(finished, 1)) if config))


def _run(run: Run, jobs: int, failed: dict[Path, str], received: Sequence[int]) -> None:
    """Run the stages of one run; if one fails, add its last line, by folder.

    Once a signal is received, what runs saves and ends, and no more is started.
    """
    start = time.monotonic()
    if run.teacher is not None and run.teacher.folder in failed:
        line: str | None = f"no teacher: {failed[run.teacher.folder]}"
    else:
        line = _failure(run, jobs, received)
    if line is not None:
        failed[run.folder] = line
    outcome = f"{time.monotonic() - start:.0f} s" if line is None else f"failed: {line}"
    say(f"{run.name}: {outcome}")


def _failure(run: Run, jobs: int, received: Sequence[int]) -> str | None:
    """Run the stages of one run; the last line if one fails."""
    # Processes that each take all cores for themselves slow each other down.
    environment = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs)), **os.environ}
    if is_fresh := not run.is_recorded(finished=False):
        (run.folder / CURVES_FILE).unlink(missing_ok=True)
    run.record(finished=False)
    for stage in run.stages:
        log = run.folder / f"{stage}.log"
        command = [sys.executable, "-m", "scm_lightning", *run.words(stage, is_fresh)]
        with (
            log.open("w") as output,
            Popen(command, stdout=output, stderr=STDOUT, env=environment) as process,
        ):
            if received:
                process.terminate()  # it was started after the others had been asked to end
            code = process.wait()
        if code:
            return _last_line(log, code)
    run.record(finished=True)
    return None


def _last_line(log: Path, code: int) -> str:
    """Last words of a failed process."""
    if code < 0:
        return f"killed by signal {-code}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("scm: error: ") if lines else f"exit code {code}"
