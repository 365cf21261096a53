# SPDX-License-Identifier: Apache-2.0
"""Floor 3: anything that yields TrigFlow's F for a student to learn from."""

from scm_lightning.teachers.checkpoint import load_teacher, read_checkpoint, weights_mismatch
from scm_lightning.teachers.frozen import FrozenTeacher

__all__ = ["FrozenTeacher", "load_teacher", "read_checkpoint", "weights_mismatch"]
