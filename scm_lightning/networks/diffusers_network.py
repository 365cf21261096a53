# SPDX-License-Identifier: Apache-2.0
"""A model of diffusers in place of one of ours.

Its weights, layers and call stay as they are; a map says what goes in under which name, and which
part of the output is F. Axes: B batch, C channels, F frames, H and W pixels.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scm_lightning.core import NULL_LABEL
from scm_lightning.networks.classes import ClassConditioning
from scm_lightning.networks.diffusers_maps import map_of
from scm_lightning.networks.model_map import ModelMap

TEXT_WIDTHS = (
    "caption_channels",
    "joint_attention_dim",
    "text_dim",
    "text_embed_dim",
    "cap_feat_dim",
    "cross_attention_dim",
)
"""Settings that say how many features a token has: the first that a model has set."""


class _GivenTime(nn.Module):
    """Projection whose first call in a forward pass gets a time that was given beside the call.

    The next call is of something else: Flux projects its guidance by the same module.
    """

    def __init__(self, project: nn.Module) -> None:
        super().__init__()
        self.project = project
        self.time: Tensor | None = None

    def forward(self, time: Tensor) -> Tensor:
        given, self.time = self.time, None
        projected: Tensor = self.project(time if given is None else given)
        return projected


class _EmbeddingWithNone(nn.Embedding):
    """Embedding in which NULL_LABEL is a vector of zeros."""

    def forward(self, labels: Tensor) -> Tensor:
        known = labels != NULL_LABEL
        return super().forward(labels.where(known, 0)) * known[..., None]


class DiffusersNetwork(ClassConditioning):
    """F(u, t, labels, guidance, **conditions) by a model of diffusers.

    The model's output is taken as F, whatever it was trained to predict: it must be trained or
    fine-tuned that way. A model trained on other times and outputs cannot serve as a teacher
    unchanged. The class that stands for none is the model's own where it has one, else a vector of
    zeros; the model's own dropping of classes is switched off, since the teacher's training drops.

    Args:
        model: a model of one of these classes of diffusers: UNet2DModel, UNet2DConditionModel
            (Stable Diffusion 1, 2, XL), DiT, PixArt, Sana, SD3, Flux, AuraFlow, Lumina2,
            HunyuanDiT, QwenImage, Wan or CogVideoX; or any, with a map.
        model_map: how the model is called; None for the map of its class.
        time: what the model is told: t in radians, or the time of its own training with the same
            ratio of noise to data.

    Attributes:
        condition_names: the conditions that the network is called with by name.
        optional_conditions: those of them that it can do without.

    Raises:
        ValueError: if the model's class has no map, or the map no time of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        model_map: ModelMap | None = None,
        time: Literal["radians", "source"] = "radians",
    ) -> None:
        super().__init__()
        its = map_of(model) if model_map is None else model_map
        if time == "source":
            if its.source_time is None:
                raise ValueError(
                    f"the time that {type(model).__name__} was trained on is not known; set time "
                    "to radians, or give a model_map with its source_time"
                )
            its = replace(its, told=its.source_time)
        self.model, self.map = model, its
        self.num_classes = its.num_classes
        self.optional_conditions = tuple(its.optional)
        self.condition_names = (*its.conditions, *its.optional)
        self.given: list[_GivenTime] = []
        if its.projection:
            owner, _, last = its.projection.rpartition(".")
            holder = model.get_submodule(owner)
            self.given.append(_GivenTime(getattr(holder, last)))
            setattr(holder, last, self.given[0])
        if its.labels:
            _let_none_be_a_class(model, its.null_class)

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """Evaluate F.

        Args:
            u: x_t / sigma_data. (B, C, H, W) or (B, C, F, H, W), unit variance.
            t: times. (B,), radians.
            labels: class labels, NULL_LABEL for no class. (B,) int64, or None for no class.
            guidance: guidance scales of a model that takes them, or None for 1. (B,).
            conditions: by the names in `condition_names`, constant in u and t. (B, ...) each.

        Returns:
            F. Shape of u, unit variance.

        Raises:
            ValueError: if something comes that the model does not take, or is missing; or if its
                output has another shape.
        """
        its = self.map
        arguments = {
            its.sample: its.layout.into(u),
            its.time: self._told(t),
            **its.extras(getattr(self.model, "config", None), u, self._checked(conditions)),
            **self._renamed(conditions),
            **self._classes(u, labels),
            **self._scales(u, guidance),
        }
        out = its.layout.back(self.model(**_nested(arguments), return_dict=False)[0], u.shape)
        channels = u.shape[1]
        F: Tensor = out[:, :channels] if its.variance and out.shape[1] == 2 * channels else out
        if F.shape != u.shape:
            raise ValueError(
                f"F must have the shape of u, {tuple(u.shape)}, got {tuple(F.shape)} from "
                f"{self._name}; build the model with as many channels out as in, and for data of "
                "this size"
            )
        return F

    @property
    def _name(self) -> str:
        return type(self.model).__name__

    def _told(self, t: Tensor) -> Tensor:
        """Hand the time to its projection, and return it for the call."""
        told = self.map.told(t)
        for given in self.given:
            given.time = self.map.inside * told
        # A compiled graph carries the time in a pair, which is no tensor to a model that asks.
        is_seen = isinstance(told, Tensor) or not self.given
        return told if is_seen else torch.ones(len(t), device=t.device)

    def _checked(self, conditions: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Refuse conditions that the model does not take, or the lack of one that it needs."""
        for name in conditions:
            if name not in self.condition_names:
                known = ", ".join(self.condition_names) or "none"
                raise ValueError(
                    f"{self._name} takes these conditions: {known}; got {name}; leave it out of "
                    "the data, or take a model of such a condition"
                )
        for name in self.map.conditions:
            if name not in conditions:
                raise ValueError(
                    f"{self._name} needs the condition {name}, which the data do not have; prepare "
                    "data with it"
                )
        config, text = getattr(self.model, "config", {}), conditions.get("text")
        width = next((config.get(name) for name in TEXT_WIDTHS if config.get(name)), None)
        if text is not None and isinstance(width, int) and text.shape[-1] != width:
            raise ValueError(
                f"{self._name} takes texts of {width} features, got {text.shape[-1]}; build it "
                "for those of the data, or encode the captions by its own encoder"
            )
        return conditions

    def _renamed(self, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = dict(conditions)
        if self.map.zeroes_text and "text_mask" in given:
            given["text"] = given["text"] * given.pop("text_mask")[..., None]
        names = {**self.map.conditions, **self.map.optional}
        # What stands for none is one tensor for all samples, of which a model may ask for a view.
        return {names[name]: x.contiguous() for name, x in given.items()}

    def _classes(self, u: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        if not self.map.labels:
            if labels is not None:
                raise ValueError(
                    f"this {self._name} was built without classes but got labels; set use_labels "
                    "of the data to false, or num_class_embeds of a model that can have classes"
                )
            return {}
        if labels is None:
            labels = torch.full((u.shape[0],), NULL_LABEL, device=u.device)
        if self.map.null_class is not None:
            labels = labels.where(labels != NULL_LABEL, self.map.null_class)
        return {self.map.labels: labels}

    def _scales(self, u: Tensor, guidance: Tensor | None) -> dict[str, Tensor]:
        if not self.map.guidance:
            if guidance is not None:
                raise ValueError(
                    f"this {self._name} takes no guidance scale; train without one, or take a "
                    "model with guidance_embeds (Flux, Sana)"
                )
            return {}
        if guidance is None:
            guidance = torch.ones(u.shape[0], dtype=u.dtype, device=u.device)
        return {self.map.guidance: self.map.guidance_factor * guidance}


def _let_none_be_a_class(model: nn.Module, null_class: int | None) -> None:
    """Let embeddings take NULL_LABEL as zeros, or drop no class at random if one stands for none.

    The name of a weight stays what it is, for checkpoints.
    """
    for module in model.modules():
        if null_class is None and type(module) is nn.Embedding:
            module.__class__ = _EmbeddingWithNone
        elif null_class is not None and isinstance(getattr(module, "dropout_prob", None), float):
            vars(module)["dropout_prob"] = 0.0


def _nested(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Names with a dot as entries of dictionaries."""
    nested: dict[str, Any] = {}
    for path, value in arguments.items():
        owner, _, name = path.rpartition(".")
        (nested.setdefault(owner, {}) if owner else nested)[name] = value
    return nested
