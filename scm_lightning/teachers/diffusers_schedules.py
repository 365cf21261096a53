# SPDX-License-Identifier: Apache-2.0
"""Process and prediction of a model of diffusers, by the configuration of its scheduler.

A scheduler's `shift`, its spacing of times and its clipping say how a sampler visits the process;
what the model was trained on does not depend on them.
"""

from collections.abc import Mapping
from typing import Any, get_args

from scm_lightning.core import (
    DiscreteProcess,
    Prediction,
    Process,
    RectifiedFlowProcess,
    TrigFlow,
)
from scm_lightning.given_files import meant
from scm_lightning.teachers.diffusers_folder import diffusers

DISCRETE = (
    "DDPMScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
)
"""Schedulers with a table of alphas_cumprod, some of them of flows as well."""
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
PREDICTIONS = tuple(each for each in get_args(Prediction) if each != "edm")


def scheduler_of(config: Mapping[str, Any]) -> Any:
    """Build a scheduler of diffusers.

    Raises:
        ValueError: if it is not among those whose process is known.
    """
    name = config.get("_class_name")
    if name not in (*DISCRETE, *FLOW):
        raise ValueError(
            "the scheduler must be one of DDPM's process or of flow matching, as "
            f"{DISCRETE[0]} or {FLOW[0]}, got {name}{meant(str(name), (*DISCRETE, *FLOW))}; save "
            "the pipeline with one of the same settings, or adapt the model by AdaptedTeacher"
        )
    try:
        return getattr(diffusers(), str(name)).from_config(dict(config))
    except Exception as error:  # a configuration of another's hand fails in many ways
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"the scheduler {name} cannot be built: {line[0]}") from error


def process_of(scheduler: Any | None, prediction: Prediction | None, path: TrigFlow) -> Process:
    """Process that a scheduler is for, with what its model predicts.

    Args:
        scheduler: of diffusers; None if there is none, which will do for a flow.
        prediction: what the model predicts; None for what the scheduler says.
        path: owner of `sigma_data` in units of the model's own data.

    Raises:
        ValueError: if the prediction is unknown, or needs a scheduler that is not there.
    """
    said = prediction
    if said is None and scheduler is not None:
        is_flow = type(scheduler).__name__ in FLOW
        said = scheduler.config.get("prediction_type", "flow_prediction" if is_flow else None)
    if said is None:
        raise ValueError(
            f"beside the model there must be {'scheduler_config.json'}, which says what it was "
            "trained on; give the pipeline's folder, or set prediction to flow_prediction for a "
            "flow"
        )
    if said not in PREDICTIONS:
        raise ValueError(
            f"prediction must be one of {', '.join(PREDICTIONS)}, got {said}; set prediction to "
            "what the model predicts"
        )
    if said == "flow_prediction":
        return RectifiedFlowProcess(path)
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise ValueError(
            f"a model that predicts {said} must have a scheduler with a table of noise beside it, "
            f"got {type(scheduler).__name__ if scheduler else 'none'}; give the pipeline's folder"
        )
    return DiscreteProcess(path, tuple(table.double().tolist()), predicts=said)
