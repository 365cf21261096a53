# SPDX-License-Identifier: Apache-2.0
"""A diffusers model in place of one of ours.

Its weights, layers and call stay as they are; only the time goes in beside the call. diffusers asks
whether the time is a torch tensor and makes one of anything else. A dual number is one; the pair of
a compiled graph is not, so the model's own projection of the time is handed the real one.
Axes: B batch, C channels, H and W pixels.
"""

import torch
from torch import Tensor, nn

from scm_lightning.networks.classes import ClassConditioning


class _GivenTime(nn.Module):
    """Projection of the time it was given instead of the one it is called with."""

    def __init__(self, project: nn.Module) -> None:
        super().__init__()
        self.project = project
        self.t: Tensor | None = None

    def forward(self, placeholder: Tensor) -> Tensor:
        projected: Tensor = self.project(self.t)
        return projected


class DiffusersNetwork(ClassConditioning):
    """F(u, t, labels, guidance) by a diffusers model, `UNet2DModel` or `DiTTransformer2DModel`.

    The model's output is taken as F and its time as t in radians: it must be trained or fine-tuned
    that way. A model trained on other times cannot serve as a teacher unchanged.

    Args:
        model: a model with the call (sample, timestep, class_labels) that projects its timestep in
            modules named `time_proj`.

    Raises:
        ValueError: if the model has no such module.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        config = getattr(model, "config", {})
        self.num_classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm") or 0
        self.given = []
        for module in list(model.modules()):
            if isinstance(project := getattr(module, "time_proj", None), nn.Module):
                module.time_proj = _GivenTime(project)
                self.given.append(module.time_proj)
        if not self.given:
            raise ValueError(
                f"a diffusers model projects its time in modules named time_proj, found none in "
                f"{type(model).__name__}; write an adapter for it"
            )

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Evaluate F.

        Args:
            u: x_t / sigma_data. (B, C, H, W), unit variance.
            t: times. (B,), radians.
            labels: class labels. (B,) int64, or None.
            guidance: None: these models take no guidance scale.

        Returns:
            F. (B, C, H, W), unit variance.

        Raises:
            ValueError: if it gets a guidance scale, or labels for a model without classes.
        """
        if guidance is not None:
            raise ValueError("diffusers models take no guidance scale; train without one")
        if labels is not None and getattr(self.model, "class_embedding", self) is None:
            raise ValueError(
                f"this {type(self.model).__name__} was built without classes but got labels; set "
                "its num_class_embeds, or use_labels of the data to false"
            )
        for given in self.given:
            given.t = t
        placeholder = torch.zeros(u.shape[0], device=u.device)
        F: Tensor = self.model(u, placeholder, class_labels=labels, return_dict=False)[0]
        return F
