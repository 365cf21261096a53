# SPDX-License-Identifier: Apache-2.0
"""An ablation as its YAML has it, and the runs that it comes to.

Below `root`: `teachers/VARIANT/seed_N` and `students/VARIANT/seed_N`, folders as `scm fit` leaves
them. A teacher whose options several variants share is in the folder of the first of them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scm_lightning import __version__
from scm_lightning.cli.run_config import LAST_CHECKPOINT
from scm_lightning.cli.strict_yaml import read_yaml
from scm_lightning.given_files import read_regular
from scm_lightning.whole_files import write_whole

TEACHER = "model.init_args.teacher"
SEED = "seed_everything"
OWN_KEYS = (SEED, "trainer.default_root_dir", "checkpoints.dirpath", "ckpt_path")
QUIET = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False}
RECORD = "made_from.json"
UNFINISHED = {"finished": False}
"""Stands in the record from the start of a run to its end."""
MAX_BYTES = 2**24
"""Largest record, or file of a run's scores."""


@dataclass(frozen=True)
class Overrides:
    """Dotted keys of configurations to values, as on the command line of `scm fit`.

    Args:
        shared: of teacher and student alike.
        teacher: of the teacher; they win over the shared ones.
        student: of the student; they win over the shared ones.
    """

    shared: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    """Variants of a configuration, each trained and scored over several seeds.

    Args:
        title: heading of table and plot.
        question: what the table answers, in one sentence.
        base: configuration that is varied.
        variants: their overrides, by name; they win over the common ones.
        scores: keys of `metrics.json`, for example fd/1_step.
        root: folder of the runs and of the results.
        teacher: configuration of a teacher to train first; None if the base needs none, or names
            one itself.
        common: overrides of all variants.
        seeds: seeds of initial weights, times and noise; one run each.
        jobs: runs at a time.

    Raises:
        ValueError: if there is nothing to run, a name is no folder's, or a key is the command's.
    """

    title: str
    question: str
    base: str
    variants: dict[str, Overrides]
    scores: list[str]
    root: str
    teacher: str | None = None
    common: Overrides = Overrides()
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    jobs: int = 1

    def __post_init__(self) -> None:
        if not (self.variants and self.scores and self.seeds) or self.jobs < 1:
            raise ValueError(
                "an ablation needs at least one variant, score, seed and job, got "
                f"{len(self.variants)}, {len(self.scores)}, {len(self.seeds)} and {self.jobs}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different, got {self.seeds}; name each once")
        reserved = {*OWN_KEYS, TEACHER} if self.teacher else set(OWN_KEYS)
        for name, overrides in {"common": self.common, **self.variants}.items():
            if name in ("", "..") or Path(str(name)).name != name:
                raise ValueError(f"a variant's name must be that of a folder, got {name!r}")
            keys = {*overrides.shared, *overrides.teacher, *overrides.student}
            if taken := sorted(keys & reserved):
                raise ValueError(
                    f"overrides must leave {', '.join(sorted(reserved))} to `scm ablate`, got "
                    f"{', '.join(taken)} in {name}; take it out"
                )
            if overrides.teacher and not self.teacher:
                raise ValueError(
                    f"an ablation without a teacher has no overrides of one, got some in {name}; "
                    "set teacher, or take them out"
                )


@dataclass(frozen=True)
class Run:
    """A training run and what is done with it.

    Args:
        name: in words.
        folder: where its files are.
        config: configuration it starts from.
        options: dotted keys to values.
        stages: subcommands, in order.
        product: file in the folder that is there once the run is done.
        teacher: the run that has to be done before, or None.
    """

    name: str
    folder: Path
    config: str
    options: Mapping[str, Any]
    stages: tuple[str, ...]
    product: Path
    teacher: "Run | None" = None

    def words(self, stage: str, fresh: bool = False) -> list[str]:
        """Arguments of `scm` for a stage; `fresh` for a training that starts anew."""
        options = {**self.options, **QUIET, "trainer.default_root_dir": str(self.folder)}
        if self.teacher is not None:
            options[TEACHER] = str(self.teacher.folder / LAST_CHECKPOINT)
        pairs = (f"--{key}={_as_word(value)}" for key, value in options.items())
        anew = ["--fresh"] if fresh and stage == "fit" else []
        return [stage, "--config", self.config, *pairs, *anew]

    def made_from(self) -> dict[str, Any]:
        """Everything that decides the outcome: configuration, options, teacher, version."""
        content = {
            "config": read_yaml(Path(self.config)),
            "options": dict(self.options),
            "stages": self.stages,
            "teacher": None if self.teacher is None else self.teacher.made_from(),
            "scm_lightning": __version__,
        }
        return json.loads(json.dumps(content, default=str))  # type: ignore[no-any-return]

    def is_recorded(self, *, finished: bool) -> bool:
        """Tell whether the run was done before from the same options, or begun, and so continues.

        Raises:
            OSError: if a configuration is not there.
            ValueError: if the record is damaged.
        """
        record, made_from = self.folder / RECORD, self.made_from()
        known = read_map(record) if record.is_file() else {}
        if finished:
            return (self.folder / self.product).is_file() and bool(known == made_from)
        return known in (made_from, made_from | UNFINISHED)

    def record(self, *, finished: bool) -> None:
        """Write down what the run is made from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = self.made_from() | ({} if finished else UNFINISHED)
        write_whole(self.folder / RECORD, json.dumps(content, indent=2) + "\n")


class Trial(NamedTuple):
    """One variant on one seed.

    Attributes:
        variant: its name.
        seed: its seed.
        run: the run that is scored.
    """

    variant: str
    seed: int
    run: Run


def read_map(file: Path) -> dict[str, Any]:
    """Read a file of a run: the record, its scores, its curves.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged; without it the run is not finished, and done again.
    """
    try:
        content = json.loads(read_regular(file, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}; remove it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a map of JSON, got other content; remove it")
    return content


def trials(ablation: Ablation) -> list[Trial]:
    """All runs of an ablation, seed by seed, so that the first seeds are complete first."""
    root, planned = Path(ablation.root), []
    teachers: dict[str, Run] = {}
    for seed in ablation.seeds:
        for variant, own in ablation.variants.items():
            name, place, teacher = f"{variant}, seed {seed}", Path(variant) / f"seed_{seed}", None
            if ablation.teacher is not None:
                options = _options("teacher", ablation.common, own, seed)
                of_teacher = f"teacher of {name}", root / "teachers" / place, ablation.teacher
                teacher = teachers.setdefault(
                    json.dumps(options, sort_keys=True),
                    Run(*of_teacher, options, ("fit",), LAST_CHECKPOINT),
                )
            options = _options("student", ablation.common, own, seed)
            of_student = name, root / "students" / place, ablation.base, options
            run = Run(*of_student, ("fit", "test"), Path("metrics.json"), teacher)
            planned.append(Trial(variant, seed, run))
    return planned


def _options(kind: str, common: Overrides, own: Overrides, seed: int) -> dict[str, Any]:
    """Options of a teacher or student: its own win over the shared, a variant's over the common."""
    of_kind = [part for each in (common, own) for part in (each.shared, getattr(each, kind))]
    return {key: value for part in of_kind for key, value in part.items()} | {SEED: seed}


def _as_word(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)
