# SPDX-License-Identifier: Apache-2.0
"""Floor 1: the paper. Tensors in, tensors out; torch alone."""

from scm_lightning.core.conditions import LABELS, MASK, NULL_LABEL, Bound, Conditions, owner_of
from scm_lightning.core.discrete_process import DiscreteProcess, linear_alphas_bar
from scm_lightning.core.ema import gamma_from_sigma_rel, half_life_decay, power_function_decay
from scm_lightning.core.flow_maps import (
    AVERAGE_VELOCITY,
    TRIGONOMETRIC,
    FlowMap,
    adaptive_loss,
)
from scm_lightning.core.guidance import (
    GuidanceProposal,
    Guided,
)
from scm_lightning.core.lengths import Length, check_length, in_run, steps_of
from scm_lightning.core.losses import consistency_loss, diffusion_loss
from scm_lightning.core.noise import sample_generators, standard_normal
from scm_lightning.core.posthoc import (
    post_hoc_coefficients,
    post_hoc_residual,
    profile_inner_products,
)
from scm_lightning.core.processes import (
    EDMProcess,
    F_from_eps,
    Prediction,
    Process,
    RectifiedFlowProcess,
    VPProcess,
)
from scm_lightning.core.tangents import (
    TangentBound,
    TangentWarmup,
    clip_tangent,
    discrete_tangent,
    normalize_tangent,
    tangent,
    tangent_norm,
)
from scm_lightning.core.times import Segments, TimeGrid, TimeProposal, check_num_steps, edm_levels
from scm_lightning.core.trigflow import (
    TrigFlow,
    at_least_float32,
    expand_time,
    widen,
    widest_float,
)

__all__ = [
    "AVERAGE_VELOCITY",
    "LABELS",
    "MASK",
    "NULL_LABEL",
    "TRIGONOMETRIC",
    "Bound",
    "Conditions",
    "DiscreteProcess",
    "EDMProcess",
    "F_from_eps",
    "FlowMap",
    "GuidanceProposal",
    "Guided",
    "Length",
    "Prediction",
    "Process",
    "RectifiedFlowProcess",
    "Segments",
    "TangentBound",
    "TangentWarmup",
    "TimeGrid",
    "TimeProposal",
    "TrigFlow",
    "VPProcess",
    "adaptive_loss",
    "at_least_float32",
    "check_length",
    "check_num_steps",
    "clip_tangent",
    "consistency_loss",
    "diffusion_loss",
    "discrete_tangent",
    "edm_levels",
    "expand_time",
    "gamma_from_sigma_rel",
    "half_life_decay",
    "in_run",
    "linear_alphas_bar",
    "normalize_tangent",
    "owner_of",
    "post_hoc_coefficients",
    "post_hoc_residual",
    "power_function_decay",
    "profile_inner_products",
    "sample_generators",
    "standard_normal",
    "steps_of",
    "tangent",
    "tangent_norm",
    "widen",
    "widest_float",
]
