# SPDX-License-Identifier: Apache-2.0
"""Declaration of how a model of others is called.

Axes: B batch, C channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from scm_lightning.networks.diffusers_layouts import SAME, Layout
from scm_lightning.networks.model_times import ModelTime, radians

Named = Mapping[str, Tensor]
Extras = Callable[[Any, Tensor, Named], dict[str, Any]]


def no_extras(config: Any, u: Tensor, named: Named) -> dict[str, Any]:
    """Nothing beside the conditions."""
    return {}


@dataclass(frozen=True)
class ModelMap:
    """Names and constants by which a model of others is called.

    A name of theirs with a dot is an entry of a dictionary: `added_cond_kwargs.time_ids`.

    Args:
        sample: their name of u.
        time: their name of the time.
        told: from t in radians to the time that the model is told, such that it embeds t.
        projection: path of the module that projects the time, if the model changes the time on the
            way there: it asks whether the time is a tensor, or rounds it. That module's first call
            gets the time itself.
        inside: what the model multiplies the time by before it is projected.
        labels: their name of classes; empty for a model without.
        null_class: the class that stands for none; None where a vector of zeros does.
        num_classes: number of classes.
        conditions: their names of the conditions that the model needs, by ours.
        optional: of those that it can do without.
        zeroes_text: whether the model has no mask, and `text_mask` makes the text zero instead.
        extras: (config, u, conditions) to further arguments, by their names; conditions replace
            them.
        guidance: their name of the guidance scale as an input; empty for a model without.
        guidance_factor: what a scale is multiplied by.
        layout: arrangement of u in the model.
        variance: whether the output may have 2 C channels, of which the first C are F.
        source_time: the time of the model's own training, or None where no model says which.
    """

    sample: str = "hidden_states"
    time: str = "timestep"
    told: ModelTime = radians
    projection: str = ""
    inside: float = 1.0
    labels: str = ""
    null_class: int | None = None
    num_classes: int = 0
    conditions: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    zeroes_text: bool = False
    extras: Extras = no_extras
    guidance: str = ""
    guidance_factor: float = 1.0
    layout: Layout = SAME
    variance: bool = False
    source_time: ModelTime | None = None
