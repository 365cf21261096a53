# SPDX-License-Identifier: Apache-2.0
r"""Conditions of a network beside its image: time, class, guidance scale, a second time.

Everything here runs in float32 or wider, whatever the trainer's precision, since an error in the
embedding of t is multiplied in the tangent.
Source: arXiv 2410.11081, Sections 4.1 and 5.2.
Axes: B batch, C channels of the embedding.
"""

import copy

import torch
from torch import Tensor, nn

from scm_lightning.core import NULL_LABEL, at_least_float32
from scm_lightning.networks.classes import ClassConditioning
from scm_lightning.networks.time_embedding import PositionalEmbedding, TimeEmbedding


class PreciseLinear(nn.Linear):
    """A linear layer computed in float32 or wider, under autocast and with half weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        dtype = torch.promote_types(at_least_float32(x).dtype, self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x.to(dtype), self.weight.to(dtype), bias)


class GuidanceEmbedding(nn.Module):
    """A condition that a student has beyond its teacher: the guidance scale, or a second time.

    It adds nothing at the start: a student with its teacher's weights starts as the teacher.

    Args:
        num_features: channels of the positional embedding of the scalar.
        num_channels: channels C of the result.

    Source: arXiv 2410.11081, Section 5.3: one linear layer, added to the embedding of t.
        Zero at the start (ours).
    """

    def __init__(self, num_features: int, num_channels: int) -> None:
        super().__init__()
        self.position = PositionalEmbedding(num_features)
        self.linear = PreciseLinear(num_features, num_channels, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, guidance: Tensor) -> Tensor:
        """Embed one scalar per sample. (B,) to (B, C), float32 or wider."""
        emb: Tensor = self.linear(self.position(guidance))
        return emb


def without_added_conditions(network: nn.Module) -> nn.Module:
    """Copy a network without its guidance scale and second time: its teacher's architecture."""
    network = copy.deepcopy(network)
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, GuidanceEmbedding):
                setattr(module, name, None)
    return network


def check_conditions(
    *,
    num_classes: int,
    guided: bool,
    two_times: bool,
    labels: Tensor | None,
    guidance: Tensor | None,
    t_end: Tensor | None,
) -> None:
    """Refuse conditions that a network was built without, and require those it was built with.

    Labels alone may always be left out: that is the unconditional model.

    Raises:
        ValueError: if a condition does not fit.
    """
    if labels is not None and not num_classes:
        raise ValueError(
            "this network was built without classes but got labels; set num_classes, or stream "
            "data without labels"
        )
    if (guidance is None) == guided:
        raise ValueError(
            f"a network built with guided={guided} got "
            f"{'no guidance scale' if guidance is None else 'a guidance scale'}; set guided "
            "to match"
        )
    if (t_end is None) == two_times:
        raise ValueError(
            f"a network built with two_times={two_times} got "
            f"{'no second time' if t_end is None else 'a second time'}; set two_times to match: "
            "flow maps need it (MeanFlow, AlphaFlow, Segments), the other objectives do without"
        )


def condition_names(text_channels: int, image_channels: int) -> tuple[str, ...]:
    """Names of the conditions that a network with these options is called with."""
    text, image = ("text", "text_mask"), ("image",)
    return (*(text if text_channels else ()), *(image if image_channels else ()))


class Conditioning(ClassConditioning):
    """Embedding of time, class and guidance scale that every block of a network reads.

    Args:
        num_channels: channels C of the result.
        num_classes: number of classes; 0 for a network without labels.
        guided: whether the network takes a guidance scale.
        two_times: whether the network takes the time that its flow map leads to.
        time_embedding: how the times are seen.
        num_features: channels of the features of the times; 0 for as many as the result's.
        augment_channels: augmentation labels A that the network takes; 0 for none.
    """

    def __init__(
        self,
        num_channels: int,
        num_classes: int = 0,
        guided: bool = False,
        two_times: bool = False,
        time_embedding: TimeEmbedding = TimeEmbedding(),
        num_features: int = 0,
        augment_channels: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}; 0 is for none")
        num_features = num_features or num_channels
        self.num_classes = num_classes
        self.time_embedding = time_embedding
        self.position = time_embedding.make_features(num_features)
        self.augment = (
            PreciseLinear(augment_channels, num_features, bias=False) if augment_channels else None
        )
        self.time = PreciseLinear(num_features, num_channels)
        self.label = nn.Embedding(num_classes, num_channels) if num_classes else None
        self.guidance = GuidanceEmbedding(num_features, num_channels) if guided else None
        self.end = GuidanceEmbedding(num_features, num_channels) if two_times else None
        self.out = PreciseLinear(num_channels, num_channels)

    def forward(
        self,
        t: Tensor,
        labels: Tensor | None,
        guidance: Tensor | None,
        t_end: Tensor | None = None,
        augment: Tensor | None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        """Embed the conditions.

        Args:
            t: times. (B,), radians.
            labels: class labels, NULL_LABEL for no class. (B,) int64, or None for no class at all.
            guidance: guidance scales. (B,), or None.
            t_end: times that the flow map leads to. (B,), radians, or None.
            augment: augmentation labels. (B, A), or None for zeros: images as they are.
            added: what another condition adds to those of time and class. (B, C), or None.

        Returns:
            The embedding. (B, C), float32 or wider.

        Raises:
            ValueError: if a condition comes that the network was built without, or one is missing.
        """
        check_conditions(
            num_classes=self.num_classes,
            guided=self.guidance is not None,
            two_times=self.end is not None,
            labels=labels,
            guidance=guidance,
            t_end=t_end,
        )
        features = self.position(self.time_embedding.c_noise(t))
        if self.augment is not None:
            if augment is None:  # zeros, not left out: DDP wants a gradient of every weight
                size = (len(t), self.augment.in_features)
                augment = torch.zeros(size, dtype=features.dtype, device=t.device)
            features = features + self.augment(augment)
        elif augment is not None:
            raise ValueError(
                "this network was built without augmentation labels but got some; set its "
                f"augment_channels to {augment.shape[1]}, or train without augmentation"
            )
        emb: Tensor = self.time(features)
        if self.label is not None and labels is not None:
            classes = at_least_float32(self.label(labels.clamp(min=0)))
            emb = emb + classes * (labels != NULL_LABEL)[:, None]
        if self.guidance is not None and guidance is not None:
            emb = emb + self.guidance(guidance)
        if self.end is not None and t_end is not None:
            emb = emb + self.end(t_end)
        if added is not None:
            emb = emb + added
        return nn.functional.silu(self.out(nn.functional.silu(emb)))
