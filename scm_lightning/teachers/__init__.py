# SPDX-License-Identifier: Apache-2.0
"""Floor 5: anything that yields TrigFlow's F for a student to learn from."""

from scm_lightning.teachers.frozen import FrozenTeacher
from scm_lightning.teachers.own_runs import load_teacher, weights_mismatch

__all__ = ["FrozenTeacher", "load_teacher", "weights_mismatch"]
