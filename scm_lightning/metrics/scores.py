# SPDX-License-Identifier: Apache-2.0
"""Scores of a set of samples against the training data.

A Frechet distance falls with the number of samples, so it is taken twice: over all samples, and as
the mean over blocks of as many samples as there are held-out data. Only the second may be compared
with the floor, the held-out data's own distance.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scm_lightning.metrics import fidelity
from scm_lightning.metrics.frechet import Statistics, frechet_distance, statistics
from scm_lightning.metrics.reference import Reference
from scm_lightning.metrics.samples import JoinedSamples


class Score(NamedTuple):
    """A number and what it was measured on."""

    value: float
    num_samples: int


@dataclass(frozen=True)
class Scoring:
    """What is measured of a set of samples.

    Args:
        reference: what samples are compared with.
        block_size: samples of a block; as many as there are held-out data.
        kid: whether the kernel distance is measured, if torch-fidelity is installed.
        precision_recall: whether precision and recall are, if torch-fidelity is installed.
    """

    reference: Reference
    block_size: int
    kid: bool = True
    precision_recall: bool = True

    def scores(self, samples: JoinedSamples) -> dict[str, Score]:
        """Scores by name.

        Returns:
            `fid`, or `fd_dinov2` or `fd` with another extractor: Frechet distance over all samples;
            the same with `_block`: mean over the blocks, if the set fills one; `kid`, `kid_std`;
            `precision`, `recall`; `inception_score`, `inception_score_std`; `accuracy`, share of
            samples that the extractor gives the class asked for; `nearest`, mean distance to the
            nearest training image in units of sigma_data. NaN if a sample is not finite; without
            those that the set or the extractor has not.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        found, count = self._distances(samples.features), len(samples.features)
        for name, value in self._by_torch_fidelity(samples).items():
            found[name] = Score(value, count)
        for name in ("accuracy", "nearest"):
            column = samples.correct if name == "accuracy" else samples.nearest
            if column is not None:
                found[name] = Score(float(column.double().mean()), count)
        return found

    def distance(self, features: Tensor) -> Score:
        """Frechet distance of some features. (N, num_features)."""
        return Score(self._distance(statistics(features)), len(features))

    def _distances(self, features: Tensor) -> dict[str, Score]:
        key = self.reference.extractor.distance_key
        found = {key: self.distance(features)}
        if num_blocks := len(features) // self.block_size:
            blocks = torch.split(features[: num_blocks * self.block_size], self.block_size)
            mean = sum(self.distance(block).value for block in blocks) / num_blocks
            found[f"{key}_block"] = Score(mean, self.block_size)
        return found

    def _distance(self, generated: Statistics) -> float:
        real = self.reference.statistics
        measure = fidelity.fid if self.reference.extractor.is_inception else frechet_distance
        return measure(real, generated)

    def _by_torch_fidelity(self, samples: JoinedSamples) -> dict[str, float]:
        found: dict[str, float] = {}
        if not fidelity.is_installed():
            return found
        features, data = samples.features, self.reference.features
        size, finite = min(len(features), len(data)), bool(features.isfinite().all())
        unknown = (torch.nan, torch.nan)
        if self.kid:
            pair = fidelity.kid(features, data) if finite else unknown
            found |= dict(zip(("kid", "kid_std"), pair, strict=True))
        if self.precision_recall and size > fidelity.NEIGHBOURHOOD:
            pair = fidelity.precision_recall(features, data) if finite else unknown
            found |= dict(zip(("precision", "recall"), pair, strict=True))
        if samples.logits is not None and len(features) >= fidelity.NUM_SPLITS:
            pair = fidelity.inception_score(samples.logits) if finite else unknown
            found |= dict(zip(("inception_score", "inception_score_std"), pair, strict=True))
        return found
