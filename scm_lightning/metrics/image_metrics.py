# SPDX-License-Identifier: Apache-2.0
"""Distances between images of two kinds as torchmetrics' metrics, for anybody's LightningModule.

    self.fd = FrechetDistance(DigitFeatures())
    self.fd.update(images, real=True)
    self.fd.update(samples, real=False)
    self.log("fd", self.fd)

States of several processes are joined, however many images each has; values do not depend on who
had which. All but the Frechet distance give several numbers: `self.log_dict(metric.compute())`.
Metrics in a `MetricCollection` that keep the same features look at images once, by its compute
groups; any, with one extractor, in torchmetrics' `FeatureShare`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from scm_lightning.metrics import fidelity
from scm_lightning.metrics.features import FeatureExtractor, Features
from scm_lightning.metrics.frechet import (
    Statistics,
    frechet_distance,
    merged,
    moments,
    statistics_of,
)
from scm_lightning.metrics.gathering import in_all_processes


class ImageMetric(Metric, ABC):
    """A metric of generated images, beside real ones, by their features.

    Args:
        extractor: what it looks at.
        reference: what is known of the real images, if they are not given to `update`.
        options: those of every `torchmetrics.Metric`.
    """

    feature_network = "extractor"
    full_state_update = False
    is_differentiable = False

    def __init__(self, extractor: FeatureExtractor, reference: Any, **options: Any) -> None:
        super().__init__(**{"dist_sync_fn": in_all_processes, **options})
        self.extractor = extractor
        self.reference = reference

    @torch.no_grad()
    def update(self, images: Tensor, real: bool = False) -> None:
        """Add images.

        Args:
            images: (B, C, H, W), values in [0, 1]; B may be 0.
            real: whether they are real ones.

        Raises:
            ValueError: if they are integers, or real ones beside a reference.
        """
        if not images.is_floating_point():
            raise ValueError(f"images must have values in [0, 1], got {images.dtype}; divide them")
        if real and self.reference is not None:
            raise ValueError("real images must come from the reference or update, got both")
        with torch.autocast(images.device.type, enabled=False):
            looked = self.extractor.eval()(images)  # a module's train() reaches it
        self._keep("real" if real else "generated", looked.where_finite(images))

    def _tensors(self, found: dict[str, float]) -> dict[str, Tensor]:
        values = torch.tensor(list(found.values()), dtype=torch.float64, device=self.device)
        return dict(zip(found, values, strict=True))

    @abstractmethod
    def _keep(self, name: str, looked: Features) -> None:
        """Add to the state of this name."""


class FrechetDistance(ImageMetric):
    """Frechet distance of Gaussians fitted to features; FID in `InceptionFeatures`.

    Args:
        extractor: what it looks at.
        reference: statistics of the real images, for example a `Reference`'s; None takes the
            images of `update(images, real=True)`.
        options: those of every `torchmetrics.Metric`.
    """

    real: Tensor
    generated: Tensor

    def __init__(
        self, extractor: FeatureExtractor, reference: Statistics | None = None, **options: Any
    ) -> None:
        super().__init__(extractor, reference, **options)
        for name in ("real", "generated"):
            self.add_state(name, moments(torch.empty(0, extractor.num_features)), merged)

    def _keep(self, name: str, looked: Features) -> None:
        setattr(self, name, merged((getattr(self, name), moments(looked.features))))

    def compute(self) -> Tensor:
        """The distance, NaN if an image is not finite. Called by all processes together."""
        real = self.reference or statistics_of(self.real)
        return self.generated.new_tensor(frechet_distance(real, statistics_of(self.generated)))


class FeatureSets(ImageMetric):
    """A metric that keeps all features.

    Args:
        extractor: what it looks at.
        reference: features of real images, for example a `Reference`'s, (M, num_features) float32;
            None takes the images of `update(images, real=True)`.
        options: those of every `torchmetrics.Metric`.

    Attributes:
        measure: numbers by name, of the features of generated and of real images.
    """

    measure: Callable[[Tensor, Tensor], dict[str, float]]
    real: list[Tensor] | Tensor
    generated: list[Tensor] | Tensor

    def __init__(
        self, extractor: FeatureExtractor, reference: Tensor | None = None, **options: Any
    ) -> None:
        fidelity.require_installed("scores of sets of features")
        super().__init__(extractor, reference, **options)
        for name in ("real", "generated"):
            self.add_state(name, [], "cat")

    def _keep(self, name: str, looked: Features) -> None:
        getattr(self, name).append(looked.features)

    def compute(self) -> dict[str, Tensor]:
        """Numbers by name, NaN if an image is not finite. Called by all processes together."""
        real = _ordered(self.real) if self.reference is None else self.reference
        return self._tensors(self.measure(_ordered(self.generated), real))


class KernelDistance(FeatureSets):
    """Mean and standard deviation over subsets, `kid` and `kid_std`; KID in `InceptionFeatures`."""

    measure = staticmethod(fidelity.kid)


class PrecisionRecall(FeatureSets):
    """Share of generated images near real ones, and of real near generated ones."""

    measure = staticmethod(fidelity.precision_recall)


class InceptionScore(ImageMetric):
    """Mean and deviation over parts, `inception_score` and `inception_score_std`.

    Real images count nothing, and may be given to `update` as to the other metrics.

    Args:
        extractor: one that classifies.
        options: those of every `torchmetrics.Metric`.
    """

    logits: list[Tensor] | Tensor

    def __init__(self, extractor: FeatureExtractor, **options: Any) -> None:
        fidelity.require_installed("inception scores")
        super().__init__(extractor, None, **options)
        self.add_state("logits", [], "cat")

    def _keep(self, name: str, looked: Features) -> None:
        if looked.logits is None:
            raise ValueError("an inception score needs an extractor that classifies; give another")
        if name == "generated":
            assert isinstance(self.logits, list), "states are joined only while they are computed"
            self.logits.append(looked.logits)

    def compute(self) -> dict[str, Tensor]:
        """Both numbers, NaN if an image is not finite. Called by all processes together."""
        return self._tensors(fidelity.inception_score(_ordered(self.logits)))


def _ordered(rows: list[Tensor] | Tensor) -> Tensor:
    """All rows on the CPU, by their sum: subsets and parts must not depend on who had them."""
    joined = dim_zero_cat(rows).cpu() if len(rows) else torch.empty(0, 1)
    return joined[joined.double().sum(-1).argsort(stable=True)]
