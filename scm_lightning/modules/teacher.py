# SPDX-License-Identifier: Apache-2.0
"""Teacher of a student: loading it, and starting the student from its weights."""

from torch import nn

from scm_lightning.core import TrigFlow
from scm_lightning.given_files import given_path
from scm_lightning.networks import without_added_conditions
from scm_lightning.objectives import Objective, Term, Velocity
from scm_lightning.teachers import load_teacher, weights_mismatch


def check_teacher(part: Velocity | Objective | Term, teacher: nn.Module | None) -> None:
    """Refuse a part that needs a teacher where there is none.

    Raises:
        ValueError: if there is none.
    """
    if part.needs_teacher and teacher is None:
        raise ValueError(
            f"{type(part).__name__} needs a teacher, got none; set teacher to a checkpoint of a "
            "DiffusionModule run"
        )


def prepare_teacher(
    teacher: str | nn.Module | None, student: nn.Module, path: TrigFlow, start_from_teacher: bool
) -> nn.Module | None:
    """Load the teacher, and let the student start with its weights.

    Conditions that the student has and the teacher lacks, the guidance scale and the end of a
    segment, keep their own weights, which are zero in a new network.

    Args:
        teacher: checkpoint, network or None.
        student: the student; changed if it starts from the teacher.
        path: owner of the `sigma_data` that the teacher must have been trained with.
        start_from_teacher: whether the student takes the teacher's weights.

    Raises:
        ValueError: if the teacher does not fit.
    """
    if isinstance(teacher, str):
        teacher = load_teacher(given_path(teacher), without_added_conditions(student), path)
    if teacher is not None and start_from_teacher:
        plain = without_added_conditions(student)
        if mismatch := weights_mismatch(teacher.state_dict(), plain):
            raise ValueError(
                f"a student can start from a teacher of its own architecture, but of this teacher "
                f"{mismatch}; set start_from_teacher to false"
            )
        student.load_state_dict(student.state_dict() | teacher.state_dict())
    return teacher
