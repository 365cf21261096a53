# SPDX-License-Identifier: Apache-2.0
"""Floor 6: the LightningModules."""

import scm_lightning.torchvision_guard  # noqa: F401  before lightning
from scm_lightning.modules.augmentation import Augmentation
from scm_lightning.modules.base import GenerativeModule
from scm_lightning.modules.consistency import ConsistencyModule
from scm_lightning.modules.diffusion import DiffusionModule
from scm_lightning.modules.ema import EMA, EMAProfile, HalfLife, PowerFunction
from scm_lightning.modules.fsdp2 import FSDP2Strategy
from scm_lightning.modules.schedules import FlatCosine, InverseSqrt
from scm_lightning.modules.step_output import StepOutput

# Where version 0.3.0 had them.
from scm_lightning.objectives import (  # noqa: F401
    AdaptiveVSD,
    PairVelocity,
    TeacherVelocity,
    Velocity,
)

__all__ = [
    "EMA",
    "Augmentation",
    "ConsistencyModule",
    "DiffusionModule",
    "EMAProfile",
    "FSDP2Strategy",
    "FlatCosine",
    "GenerativeModule",
    "HalfLife",
    "InverseSqrt",
    "PowerFunction",
    "StepOutput",
]
