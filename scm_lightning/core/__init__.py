# SPDX-License-Identifier: Apache-2.0
"""Floor 1: the paper. Tensors in, tensors out; torch alone."""

from scm_lightning.core.ema import gamma_from_sigma_rel, half_life_decay, power_function_decay
from scm_lightning.core.losses import consistency_loss, diffusion_loss
from scm_lightning.core.noise import sample_generators, standard_normal
from scm_lightning.core.processes import (
    EDMProcess,
    F_from_eps,
    Process,
    RectifiedFlowProcess,
    VPProcess,
)
from scm_lightning.core.tangents import (
    clip_tangent,
    normalize_tangent,
    tangent,
    tangent_norm,
    tangent_warmup,
)
from scm_lightning.core.times import TimeProposal
from scm_lightning.core.trigflow import TrigFlow, at_least_float32, expand_time

__all__ = [
    "EDMProcess",
    "F_from_eps",
    "Process",
    "RectifiedFlowProcess",
    "TimeProposal",
    "TrigFlow",
    "VPProcess",
    "at_least_float32",
    "clip_tangent",
    "consistency_loss",
    "diffusion_loss",
    "expand_time",
    "gamma_from_sigma_rel",
    "half_life_decay",
    "normalize_tangent",
    "power_function_decay",
    "sample_generators",
    "standard_normal",
    "tangent",
    "tangent_norm",
    "tangent_warmup",
]
