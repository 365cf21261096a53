# SPDX-License-Identifier: Apache-2.0
"""Floor 3: pure functions of (network, noise, times)."""

from scm_lightning.sampling.consistency import sample_consistency
from scm_lightning.sampling.ode import num_evaluations, sample_ode, time_grid
from scm_lightning.sampling.samplers import Sampler, Samples, consistency_samplers, teacher_samplers

__all__ = [
    "Sampler",
    "Samples",
    "consistency_samplers",
    "num_evaluations",
    "sample_consistency",
    "sample_ode",
    "teacher_samplers",
    "time_grid",
]
