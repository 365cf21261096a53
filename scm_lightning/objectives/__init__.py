# SPDX-License-Identifier: Apache-2.0
"""Floor 5: the objectives of a student, one file each, and further loss terms."""

from scm_lightning.objectives.adaptive_vsd import AdaptiveVSD
from scm_lightning.objectives.alpha_flow import AlphaFlow, AlphaSchedule
from scm_lightning.objectives.consistency import Consistency, ConsistencyObjective
from scm_lightning.objectives.discrete import Discrete
from scm_lightning.objectives.mean_flow import MeanFlow
from scm_lightning.objectives.objective import Losses, Objective, Point
from scm_lightning.objectives.segments import Segments
from scm_lightning.objectives.term import Term, TermLoss
from scm_lightning.objectives.velocity import PairVelocity, TeacherVelocity, Velocity

__all__ = [
    "AdaptiveVSD",
    "AlphaFlow",
    "AlphaSchedule",
    "Consistency",
    "ConsistencyObjective",
    "Discrete",
    "Losses",
    "MeanFlow",
    "Objective",
    "PairVelocity",
    "Point",
    "Segments",
    "TeacherVelocity",
    "Term",
    "TermLoss",
    "Velocity",
]
