# SPDX-License-Identifier: Apache-2.0
"""Floor 3: pure functions of (F, noise, times)."""

from scm_lightning.sampling.churn import Churn
from scm_lightning.sampling.consistency import sample_consistency
from scm_lightning.sampling.few_steps import (
    ConsistencySteps,
    FewSteps,
    MeanFlowSteps,
    SegmentSteps,
)
from scm_lightning.sampling.flow_map import sample_flow_map
from scm_lightning.sampling.ode import Solver, num_evaluations, sample_ode
from scm_lightning.sampling.samplers import (
    Sampler,
    Samples,
    consistency_sampler,
    consistency_samplers,
    flow_map_sampler,
    teacher_samplers,
)
from scm_lightning.sampling.sweep import SamplerSweep, SweepPoint
from scm_lightning.sampling.times import OnStep, time_grid

__all__ = [
    "Churn",
    "ConsistencySteps",
    "FewSteps",
    "MeanFlowSteps",
    "OnStep",
    "Sampler",
    "SamplerSweep",
    "Samples",
    "SegmentSteps",
    "Solver",
    "SweepPoint",
    "consistency_sampler",
    "consistency_samplers",
    "flow_map_sampler",
    "num_evaluations",
    "sample_consistency",
    "sample_flow_map",
    "sample_ode",
    "teacher_samplers",
    "time_grid",
]
