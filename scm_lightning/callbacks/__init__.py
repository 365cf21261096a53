# SPDX-License-Identifier: Apache-2.0
"""Floor 7: what happens beside the training step."""

import scm_lightning.torchvision_guard  # noqa: F401  before lightning
from scm_lightning.callbacks.bad_numbers import BadNumbers
from scm_lightning.callbacks.checkpoints import Checkpoints
from scm_lightning.callbacks.diagnostics import Diagnostics
from scm_lightning.callbacks.ema_snapshots import EMASnapshots
from scm_lightning.callbacks.gradient_noise import GradientNoise
from scm_lightning.callbacks.gradient_sync import GradientSync
from scm_lightning.callbacks.grids import SampleGrids
from scm_lightning.callbacks.lost_process import LostProcess
from scm_lightning.callbacks.metrics import SampleMetrics
from scm_lightning.callbacks.progress import Progress
from scm_lightning.callbacks.run_log import RunLog
from scm_lightning.callbacks.stop_signals import StopSignals
from scm_lightning.callbacks.summary import Summary

__all__ = [
    "BadNumbers",
    "Checkpoints",
    "Diagnostics",
    "EMASnapshots",
    "GradientNoise",
    "GradientSync",
    "LostProcess",
    "Progress",
    "RunLog",
    "SampleGrids",
    "SampleMetrics",
    "StopSignals",
    "Summary",
]
