# SPDX-License-Identifier: Apache-2.0
"""Networks that a run begins with: its teacher, and the weights that are not random."""

from pathlib import Path

from torch import nn

from scm_lightning.core import TrigFlow
from scm_lightning.given_files import given_path
from scm_lightning.networks import without_added_conditions
from scm_lightning.objectives import Objective, Term, Velocity
from scm_lightning.saying import say
from scm_lightning.storage import SavedRun
from scm_lightning.storage.export import SUFFIX, Export
from scm_lightning.teachers import SourceTeacher, load_teacher, transplant
from scm_lightning.teachers.transplant import LEAST_SHARE, Weights

TEACHER = "teacher"
"""Value of `init` that stands for the teacher's weights."""
Init = str | nn.Module | None
"""Weights to begin with: `teacher`, a checkpoint or export, a network, or None for random ones."""


def check_teacher(part: Velocity | Objective | Term, teacher: nn.Module | None) -> None:
    """Refuse a part that needs a teacher where there is none.

    Raises:
        ValueError: if there is none.
    """
    if part.needs_teacher and teacher is None:
        raise ValueError(
            f"{type(part).__name__} needs a teacher, got none; set teacher to a checkpoint of a "
            "DiffusionModule run, or to a class of scm_lightning.teachers"
        )


def open_teacher(
    teacher: str | nn.Module | None, student: nn.Module, path: TrigFlow
) -> nn.Module | None:
    """Load a teacher, and tell one of another source which path it is on.

    Args:
        teacher: checkpoint, network or None.
        student: the student.
        path: owner of the `sigma_data` that the teacher must have been trained with.

    Raises:
        ValueError: if the teacher does not fit.
    """
    if isinstance(teacher, str):
        return load_teacher(given_path(teacher), without_added_conditions(student), path)
    if isinstance(teacher, SourceTeacher):
        teacher.on_path(path)
        say(f"teacher: {teacher.described()}")
    return teacher


def licence_of(*sources: object) -> str | None:
    """Licence of what a run is made of, or licences; None if none is known."""
    return united(*(getattr(source, "licence", None) for source in sources))


def united(*licences: str | None) -> str | None:
    """Licences that hold together, each once; None if there is none."""
    return " and ".join(dict.fromkeys(filter(None, licences))) or None


def begin(
    network: nn.Module, init: Init, teacher: nn.Module | None, path: TrigFlow
) -> nn.Module | Export | None:
    """Give a network the weights that it begins with.

    Conditions that it has beyond their source, the guidance scale and the end of a segment, keep
    their own weights, which are zero in a new network. Anything else that stays new is said.

    Args:
        network: the network; changed.
        init: where the weights come from.
        teacher: the run's teacher, or None; without one, `teacher` stands for random weights.
        path: owner of `sigma_data`.

    Returns:
        What the weights come from; None for random ones.

    Raises:
        ValueError: if the source has no weights for it.
    """
    if not isinstance(init, Init):
        raise ValueError(
            f"init must be teacher, a file, a network or None, got {init!r}; start_from_teacher of "
            "version 0.5.0 is init: teacher for true, None for false"
        )
    given = teacher if init == TEACHER else init
    if given is None:
        return None
    source = _opened(given, path) if isinstance(given, str) else given
    name, weights = _weights_of(source, path)
    found = transplant(weights, without_added_conditions(network))
    if found.share < LEAST_SHARE:
        raise ValueError(
            f"init must be of the network's own architecture, but of {name} it "
            f"{found.described()}; set init to null, or build the network as that one"
        )
    network.load_state_dict(network.state_dict() | found.tensors)
    if found.left or found.unused or init != TEACHER:
        say(f"init: {TEACHER if init == TEACHER else name}: {found.described()}")
    return source


def _opened(path_of_file: str, path: TrigFlow) -> Export:
    """Weights of a run of this package, from its checkpoint or export."""
    file = Path(given_path(path_of_file))
    found = Export.read(file) if file.suffix == SUFFIX else SavedRun.read(file).average()
    if found.sigma_data != path.sigma_data:
        raise ValueError(
            f"init needs the run's sigma_data: {file} was trained with {found.sigma_data:g}, this "
            f"run has {path.sigma_data:g}; set path.sigma_data"
        )
    return found


def _weights_of(source: nn.Module | Export, path: TrigFlow) -> tuple[str, Weights]:
    """Name of a source of weights, and the weights."""
    if isinstance(source, Export):
        return f"step {source.step:,} of a {source.module} run", source.tensors
    if not isinstance(source, SourceTeacher):
        return type(source).__name__, source
    source.on_path(path)
    if (own := source.own_network()) is None:
        raise ValueError(
            f"init needs weights of a network of this package, and {source.source} is only called "
            "as a teacher; set init to null"
        )
    return source.source, own
