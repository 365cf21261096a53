# SPDX-License-Identifier: Apache-2.0
"""Floor 6: the LightningModules."""

import scm_lightning.torchvision_guard  # noqa: F401  before lightning
from scm_lightning.modules.base import GenerativeModule, StepOutput
from scm_lightning.modules.consistency import ConsistencyModule
from scm_lightning.modules.diffusion import DiffusionModule
from scm_lightning.modules.ema import EMA, EMAProfile, HalfLife, PowerFunction
from scm_lightning.modules.fsdp2 import FSDP2Strategy
from scm_lightning.modules.schedules import FlatCosine, InverseSqrt

__all__ = [
    "EMA",
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
