# SPDX-License-Identifier: Apache-2.0
"""Floor 5: anything that yields TrigFlow's F for a student to learn from."""

from scm_lightning.teachers.adapted import AdaptedTeacher
from scm_lightning.teachers.conversion_check import Conversion, check_conversion
from scm_lightning.teachers.diffusers_teacher import DiffusersStudent, DiffusersTeacher
from scm_lightning.teachers.dit_original import DiTTeacher, SiTTeacher
from scm_lightning.teachers.edm import EDMTeacher
from scm_lightning.teachers.edm2 import EDM2Teacher
from scm_lightning.teachers.edm2_scm import EDM2SCMTeacher
from scm_lightning.teachers.first_batch import FirstLook, first_look
from scm_lightning.teachers.frozen import FrozenTeacher
from scm_lightning.teachers.own_runs import load_teacher, weights_mismatch
from scm_lightning.teachers.source import SourceTeacher
from scm_lightning.teachers.transplant import Transplant, transplant
from scm_lightning.teachers.unconditional import ClassTeacher

__all__ = [
    "AdaptedTeacher",
    "ClassTeacher",
    "Conversion",
    "DiTTeacher",
    "DiffusersStudent",
    "DiffusersTeacher",
    "EDM2SCMTeacher",
    "EDM2Teacher",
    "EDMTeacher",
    "FirstLook",
    "FrozenTeacher",
    "SiTTeacher",
    "SourceTeacher",
    "Transplant",
    "check_conversion",
    "first_look",
    "load_teacher",
    "transplant",
    "weights_mismatch",
]
