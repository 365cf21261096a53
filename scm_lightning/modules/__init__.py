# SPDX-License-Identifier: Apache-2.0
"""Floor 5: the LightningModules."""

import scm_lightning.torchvision_guard  # noqa: F401  before lightning
from scm_lightning.modules.base import GenerativeModule
from scm_lightning.modules.consistency import ConsistencyModule
from scm_lightning.modules.diffusion import DiffusionModule
from scm_lightning.modules.ema import EMA, EMAProfile, HalfLife, PowerFunction
from scm_lightning.modules.schedules import FlatCosine
from scm_lightning.modules.velocity import PairVelocity, TeacherVelocity, Velocity

__all__ = [
    "EMA",
    "ConsistencyModule",
    "DiffusionModule",
    "EMAProfile",
    "FlatCosine",
    "GenerativeModule",
    "HalfLife",
    "PairVelocity",
    "PowerFunction",
    "TeacherVelocity",
    "Velocity",
]
