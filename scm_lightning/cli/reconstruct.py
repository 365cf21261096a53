# SPDX-License-Identifier: Apache-2.0
"""`scm reconstruct`: the averaged weights of another width, from the snapshots of a run.

    weights = sum_i c_i snapshot_i     with c of `post_hoc_coefficients`

What is written is the run's checkpoint with these weights in the place of the average that is
sampled from: for `--ckpt_path` of `scm test` and `scm predict`, and for a student's `teacher`. The
optimizer's state is left out, since a run that went on from there would go on with an average of
another width.
Source: EDM2 (arXiv 2312.02696), Section 3.2.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from scm_lightning.cli.next_steps import pictures_of, run_in, say_next, scores_of, student_of
from scm_lightning.cli.run_config import LAST_CHECKPOINT
from scm_lightning.core import gamma_from_sigma_rel, post_hoc_coefficients, post_hoc_residual
from scm_lightning.given_files import given_path, meant_path
from scm_lightning.saying import counted, say, warn
from scm_lightning.storage import Checkpoint, SavedRun, Snapshot
from scm_lightning.storage.history import OWN_NAME
from scm_lightning.storage.saved_run import EMA_PREFIX, METADATA_KEY
from scm_lightning.storage.snapshot import (
    SNAPSHOT_FOLDER,
    ends_of_profiles,
    read_snapshots,
    sum_of_snapshots,
)

RESIDUAL_WARNED = 0.03
"""On random walks, an error of a tenth of the distance to the nearest average that was tracked."""
RESIDUAL_REFUSED = 0.2
"""There, half of that distance: the reconstruction is hardly better than a snapshot."""
LEFT_OUT = ("optimizer_states", "lr_schedulers")
Term = tuple[float, Snapshot]


def reconstruct(
    run: str, sigma_rel: float, out: str, step: int | None = None, checkpoint: str | None = None
) -> None:
    """Write a checkpoint whose averaged weights have another width.

    Args:
        run: folder of the run, its trainer.default_root_dir, with snapshots by EMASnapshots.
        sigma_rel: relative width of the power-function profile.
        out: file to write.
        step: optimizer step of the snapshots that the profile ends with; the last by default.
        checkpoint: checkpoint of the run to take everything else from; its last by default.

    Raises:
        ValueError: if run, snapshots or checkpoint are missing, do not fit each other, or do not
            span the profile.
    """
    run, out = given_path(run), given_path(out)
    gamma = gamma_from_sigma_rel(sigma_rel)
    snapshots = _snapshots_until(Path(run), step)
    step = snapshots[-1].step
    file = Path(given_path(checkpoint)) if checkpoint else Path(run) / LAST_CHECKPOINT
    if Path(out).resolve() == file.resolve():
        raise ValueError(f"out must be another file than the checkpoint {file}; give a new name")
    if OWN_NAME.fullmatch(Path(out).name):
        raise ValueError(
            f"out must have another name than those that a run continues from, got {out}; rename it"
        )
    saved = SavedRun.read(file)
    _check_origin(saved, snapshots)
    ends = ends_of_profiles(snapshots)
    gammas = [gamma_from_sigma_rel(each.sigma_rel) for each in snapshots]
    c = post_hoc_coefficients(ends, gammas, ends[-1], gamma)
    residual = post_hoc_residual(c, ends, gammas, ends[-1], gamma)
    if residual > RESIDUAL_REFUSED:
        widths = " and ".join(map(str, sorted({each.sigma_rel for each in snapshots})))
        raise ValueError(
            f"the snapshots must span the profile, a residual of {residual:.1%} remains of "
            f"sigma_rel {sigma_rel} at step {step}; the widths are {widths}: take a "
            "width nearer to these, or snapshots oftener"
        )
    terms = list(zip(c.tolist(), snapshots, strict=True))
    with counted("reading snapshots", len(terms)) as advance:
        total = sum_of_snapshots(_each(terms, advance))
    found = {"sigma_rel": sigma_rel, "step": step, "residual": residual}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Checkpoint(out).write(_replaced(saved, total, snapshots[-1], found))
    _report(found, len(terms), max(map(abs, c.tolist())), out)
    if config := run_in(Path(run)):
        again = ("--ckpt_path", out)
        say_next(scores_of(config, *again), pictures_of(config, *again), student_of(config, out))


def _each(terms: Iterable[Term], advance: Callable[[int], None]) -> Iterator[Term]:
    for term in terms:
        yield term
        advance(1)


def _snapshots_until(run: Path, step: int | None) -> list[Snapshot]:
    """The run's snapshots, of steps up to the one asked for."""
    if not run.is_dir():
        advice = meant_path(run) or "; give the folder that `scm fit` wrote to"
        raise ValueError(f"there is no run {run}{advice}")
    snapshots = read_snapshots(run / SNAPSHOT_FOLDER)
    if not snapshots:
        raise ValueError(
            f"there are no snapshots of averages in {run / SNAPSHOT_FOLDER}; train with "
            "scm_lightning.callbacks.EMASnapshots in trainer.callbacks"
        )
    steps = [each.step for each in snapshots]
    if step is not None and step not in steps:
        nearest = min(steps, key=lambda each: abs(each - step))
        raise ValueError(
            f"step must be one of those with snapshots, {steps[0]} to {steps[-1]}, got {step}; the "
            f"nearest is {nearest}"
        )
    # Later snapshots would add next to nothing; without them the result is the same whenever the
    # command is run.
    return [each for each in snapshots if step is None or each.step <= step]


def _check_origin(saved: SavedRun, snapshots: list[Snapshot]) -> None:
    """Refuse snapshots and a checkpoint that are of different kinds of run."""
    expected = (saved.metadata["module"], saved.metadata["sigma_data"])
    for each in snapshots:
        if (each.module, each.sigma_data) != expected:
            raise ValueError(
                f"snapshots and checkpoint must be of one run: {saved.path} is a {expected[0]} run "
                f"with sigma_data {expected[1]}, {each.file} a {each.module} run with "
                f"{each.sigma_data}; give its checkpoint, or move foreign snapshots away"
            )


def _replaced(
    saved: SavedRun, weights: dict[str, Tensor], snapshot: Snapshot, found: dict[str, float]
) -> dict[str, Any]:
    """The checkpoint with other averaged weights, and a note of what they are."""
    averaged = saved.average().tensors
    if (
        not set(weights) <= set(averaged)
        or not set(averaged) - set(weights) <= set(snapshot.buffers)
        or any(weights[name].shape != averaged[name].shape for name in weights)
    ):
        raise ValueError(
            f"snapshots and checkpoint must be of one network, those in {snapshot.file} and "
            f"{saved.path} differ; give the checkpoint of this run"
        )
    new = {f"{EMA_PREFIX}{name}": x.to(averaged[name].dtype) for name, x in weights.items()}
    return {
        **{key: value for key, value in saved.content.items() if key not in LEFT_OUT},
        "state_dict": saved.content["state_dict"] | new,
        METADATA_KEY: {**saved.metadata, "reconstructed": found},
    }


def _report(found: dict[str, float], count: int, largest: float, out: str) -> None:
    """Say what was written, and how far to trust it."""
    sigma_rel, step, residual = found.values()
    if residual > RESIDUAL_WARNED:
        warn(
            f"warning: a residual above {RESIDUAL_WARNED:.0%} means that the snapshots "
            "span the profile poorly; take a width between theirs, or snapshots oftener"
        )
    say(
        f"written to {out}: sigma_rel {sigma_rel:g} at step {step} from {count} snapshots, largest "
        f"coefficient {largest:.2f}, residual {residual:.2%}"
    )
