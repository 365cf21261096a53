# SPDX-License-Identifier: Apache-2.0
"""Floor 3: pure functions of (F, noise, times), and how a run uses them."""

from scm_lightning.sampling.churn import Churn
from scm_lightning.sampling.consistency import sample_consistency
from scm_lightning.sampling.draws import (
    DiffusionSampling,
    Draw,
    FewStepSampling,
    Samples,
    few_step_draw,
)
from scm_lightning.sampling.flow_map import sample_flow_map
from scm_lightning.sampling.ode import Solver, sample_ode
from scm_lightning.sampling.steps import EqualJumps, FreshNoise, Jumps, SegmentJumps, Steps
from scm_lightning.sampling.sweep import SamplerSweep, SweepPoint
from scm_lightning.sampling.times import OnStep, time_grid

__all__ = [
    "Churn",
    "DiffusionSampling",
    "Draw",
    "EqualJumps",
    "FewStepSampling",
    "FreshNoise",
    "Jumps",
    "OnStep",
    "SamplerSweep",
    "Samples",
    "SegmentJumps",
    "Solver",
    "Steps",
    "SweepPoint",
    "few_step_draw",
    "sample_consistency",
    "sample_flow_map",
    "sample_ode",
    "time_grid",
]
