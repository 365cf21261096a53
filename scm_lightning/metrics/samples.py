# SPDX-License-Identifier: Apache-2.0
"""A set of samples that several processes draw, put together in the first of them.

Every process extracts features of the samples that it draws. Joined, they are sorted by the number
of the sample, so that scores do not depend on who drew what, nor in which order.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scm_lightning.metrics.reference import Reference, ToImages


class JoinedSamples(NamedTuple):
    """All samples of a set, by their number, on the CPU.

    Attributes:
        features: NaN for a sample that is not finite. (N, num_features) float32.
        logits: Inception's. (N, number of classes) float32, or None.
        correct: 1 where the extractor gives the class that was asked for, else 0. (N,) float32, or
            None.
        nearest: distances to the nearest training image, in units of sigma_data. (N,), or None.
    """

    features: Tensor
    logits: Tensor | None
    correct: Tensor | None
    nearest: Tensor | None


class SampleSet:
    """The samples of one set that this process draws.

    Args:
        reference: what they will be compared with.
        to_images: makes images of the samples; None for what makes images of the training data.
        measure_nearest: whether the nearest training image is looked for.
    """

    def __init__(
        self,
        reference: Reference,
        to_images: ToImages | None = None,
        measure_nearest: bool = True,
    ) -> None:
        self.reference = reference
        self.to_images = to_images
        self.measure_nearest = measure_nearest
        self._parts: list[dict[str, Tensor]] = []

    def update(self, indices: Tensor, x0: Tensor, labels: Tensor | None) -> None:
        """Add samples.

        Args:
            indices: numbers of the samples in their set. (B,) int64; B may be 0.
            x0: samples. (B, ...), data units.
            labels: classes that were asked for. (B,), or None.
        """
        if not len(x0):
            return
        extractor, looked = self.reference.extractor, self.reference.look(x0, self.to_images)
        finite = x0.flatten(1).isfinite().all(dim=1).cpu()
        nan = torch.full_like(looked.features, torch.nan)  # bytes of an image could not show it
        features = torch.where(finite[:, None], looked.features, nan)
        part = {"indices": indices.cpu(), "features": features}
        if looked.logits is not None and extractor.is_inception:
            part["logits"] = looked.logits
        elif looked.logits is not None and labels is not None:
            part["correct"] = (looked.logits.argmax(1) == labels.cpu()).float()
        distances = self.reference.nearest(x0) if self.measure_nearest else None
        if distances is not None:
            part["nearest"] = distances
        self._parts.append(part)

    def joined(self, shared: bool = True) -> JoinedSamples | None:
        """All samples, in the first process; None in the others. Called by all together.

        Args:
            shared: whether every process has a part of the samples; else only the caller's count.
        """
        parts = in_first_process(self._parts) if shared else self._parts
        if parts is None:
            return None
        empty = torch.empty(0, self.reference.extractor.num_features)
        parts = parts or [{"indices": torch.empty(0, dtype=torch.int64), "features": empty}]
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        indices, order = columns.pop("indices").sort()
        assert bool((indices.diff() > 0).all()), "a sample was drawn twice"
        by_name = {name: column[order] for name, column in columns.items()}
        return JoinedSamples(
            by_name["features"],
            by_name.get("logits"),
            by_name.get("correct"),
            by_name.get("nearest"),
        )


def from_first_process(value: Any) -> Any:
    """What the first process has, in all of them. Called by all together."""
    if not _are_several():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def in_first_process(parts: list[Any]) -> list[Any] | None:
    """The lists of all processes behind each other in the first; None in the others.

    Called by all together.
    """
    if not _are_several():
        return parts
    group = torch.distributed
    first = group.get_rank() == 0
    gathered: list[Any] | None = [None] * group.get_world_size() if first else None
    group.gather_object(parts, gathered)
    return [part for of_process in gathered for part in of_process] if gathered else None


def _are_several() -> bool:
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1
