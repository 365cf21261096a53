# SPDX-License-Identifier: Apache-2.0
"""Scores of a set of samples against the training data.

A Frechet distance falls with the number of samples, so it is taken twice: over all samples, and as
the mean over blocks of as many samples as there are held-out data. Only the second may be compared
with the floor, the held-out data's own distance.

Every process extracts features of the samples that it draws. Joined, they are sorted by the number
of the sample, so that scores do not depend on who drew what, nor in which order.
"""

import sys
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from scm_lightning.metrics import fidelity
from scm_lightning.metrics.frechet import frechet_distance, require, statistics
from scm_lightning.metrics.reference import Reference, ToImages


class Score(NamedTuple):
    """A number and what it was measured on."""

    value: float
    num_samples: int


class SampleScores(Metric):
    """Scores of the samples of one set, looked at once.

    `sync(in_first_process)`, called by all processes, brings all samples into the first; `compute`
    is called there.

    Args:
        reference: what samples are compared with.
        to_images: makes images of the samples; None for what makes images of the training data.
        block_size: samples of a block, as many as there are held-out data.
        kid: whether the kernel distance is measured, if torch-fidelity is installed.
        precision_recall: whether precision and recall are, if torch-fidelity is installed.
        nearest: whether the nearest training image is looked for.
    """

    full_state_update = False
    kinds = ("features", "logits", "accuracy", "nearest", "deviation")
    indices: list[Tensor] | Tensor

    def __init__(
        self,
        reference: Reference,
        to_images: ToImages | None = None,
        block_size: int = sys.maxsize,
        kid: bool = False,
        precision_recall: bool = False,
        nearest: bool = False,
    ) -> None:
        super().__init__(sync_on_compute=False)
        self.reference = reference
        self.block_size = block_size
        self.kid = kid
        self.precision_recall = precision_recall
        self.measures_nearest = nearest
        self.to_images = to_images
        for name in ("indices", *self.kinds):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        indices: Tensor,
        x0: Tensor,
        labels: Tensor | None,
        deviations: Tensor | None = None,
    ) -> None:
        """Add samples.

        Args:
            indices: numbers of the samples in their set. (B,) int64; B may be 0.
            x0: samples. (B, ...), data units.
            labels: classes that were asked for. (B,), or None.
            deviations: how far they are from an image that they were given. (B,), or None.
        """
        if not len(x0):
            return
        looked = self.reference.look(x0, self.to_images)
        rows = {"indices": indices.cpu(), "features": looked.features}
        if looked.logits is not None and self.reference.extractor.is_inception:
            rows["logits"] = looked.logits
        elif looked.logits is not None and labels is not None:
            rows["accuracy"] = (looked.logits.argmax(1) == labels.cpu()).float()
        distances = self.reference.nearest(x0) if self.measures_nearest else None
        if distances is not None:
            rows["nearest"] = distances
        if deviations is not None:
            rows["deviation"] = deviations.cpu()
        for name, column in rows.items():
            getattr(self, name).append(column)

    def compute(self) -> dict[str, Score]:
        """Scores by name.

        Returns:
            `fid`, or `fd_dinov2` or `fd` with another extractor: Frechet distance over all samples;
            of clips `frame_distance` and `temporal_distance` instead; the same with `_block`: mean
            over the blocks, if the set fills one; `kid`, `kid_std`;
            `precision`, `recall`; `inception_score`, `inception_score_std`; `accuracy`, share of
            samples that the extractor gives the class asked for; `nearest`, mean distance to the
            nearest training image in units of sigma_data; `deviation`, mean of the root mean square
            differences from what samples were given, pixels being from -1 to 1. NaN if a sample is
            not finite; without those that the set or the extractor does not have.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        indices = dim_zero_cat(self.indices) if len(self.indices) else torch.empty(0)
        require(2, "a score", generated=len(indices))
        indices, order = indices.sort()
        assert bool((indices.diff() > 0).all()), "a sample was drawn twice"
        states = {name: getattr(self, name) for name in self.kinds}
        rows = {name: dim_zero_cat(each)[order] for name, each in states.items() if len(each)}
        features, logits = rows.pop("features"), rows.pop("logits", None)
        found = self._distances(features)
        others = self._by_torch_fidelity(features, logits) if fidelity.is_installed() else {}
        others |= {name: float(column.double().mean()) for name, column in rows.items()}
        return found | {name: Score(value, len(features)) for name, value in others.items()}

    def _distances(self, features: Tensor) -> dict[str, Score]:
        found = {
            key: Score(value, len(features)) for key, value in self._distances_of(features).items()
        }
        if num_blocks := len(features) // self.block_size:
            blocks = torch.split(features[: num_blocks * self.block_size], self.block_size)
            values = [self._distances_of(block) for block in blocks]
            for key in [*found]:
                mean = sum(each[key] for each in values) / num_blocks
                found[f"{key}_block"] = Score(mean, self.block_size)
        return found

    def _distances_of(self, features: Tensor) -> dict[str, float]:
        views = self.reference.extractor.views
        real, drawn = views(self.reference.statistics), views(statistics(features))
        return {key: frechet_distance(real[key], drawn[key]) for key in real}

    def _by_torch_fidelity(self, features: Tensor, logits: Tensor | None) -> dict[str, float]:
        data = self.reference.features
        found = fidelity.kid(features, data) if self.kid else {}
        if self.precision_recall and min(len(features), len(data)) > fidelity.NEIGHBOURHOOD:
            found |= fidelity.precision_recall(features, data)
        if logits is not None and len(features) >= fidelity.NUM_SPLITS:
            found |= fidelity.inception_score(logits)
        return found
