# SPDX-License-Identifier: Apache-2.0
"""Distances between images of two kinds as torchmetrics' metrics, for anybody's LightningModule.

    self.fd = FrechetDistance(DigitFeatures())
    self.fd.update(images, real=True)
    self.fd.update(samples, real=False)
    self.log("fd", self.fd)

States of several processes are joined, however many images each has; values do not depend on who
had which. All but the Frechet distance give several numbers by name, which `self.log` does not
take: at the end of an epoch, `self.log_dict(metric.compute())`, then `metric.reset()`.
Metrics in a `MetricCollection` that keep the same features look at images once, by its compute
groups; any, with one extractor, in torchmetrics' `FeatureShare`. Extractors are frozen parts of the
module: their weights are in its checkpoints.
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
from scm_lightning.metrics.frechet import frechet_distance, merged, moments, statistics_of
from scm_lightning.metrics.gathering import in_all_processes


class ImageMetric(Metric, ABC):
    """A metric of generated images, beside real ones, by their features.

    Args:
        extractor: what it looks at.
        reference: what is known of the real images, as the metric says; None takes the images of
            `update(images, real=True)`.
        options: those of every `torchmetrics.Metric`.

    Raises:
        ValueError: if the extractor is not one, but the name or number of another library's.
    """

    feature_network = "extractor"
    full_state_update = False
    is_differentiable = False

    def __init__(self, extractor: FeatureExtractor, reference: Any = None, **options: Any) -> None:
        if not isinstance(extractor, FeatureExtractor):
            raise ValueError(
                f"{type(self).__name__} needs a FeatureExtractor, got {extractor!r}; give "
                "InceptionFeatures() for FID and its kin, or a class of your own"
            )
        super().__init__(**{"dist_sync_fn": in_all_processes, **options})
        self.extractor = extractor
        self.reference = reference
        for name in ("real", "generated"):
            self.add_state(name, *self._start())

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

    @abstractmethod
    def _start(self) -> tuple[Tensor | list[Tensor], Any]:
        """The state of no images, and how states are joined."""

    @abstractmethod
    def _keep(self, name: str, looked: Features) -> None:
        """Add to the state of this name."""


class FrechetDistance(ImageMetric):
    """Frechet distance of Gaussians fitted to features; FID in `InceptionFeatures`.

    The reference, if given, is `Statistics` of the real images, for example a `Reference`'s.
    """

    higher_is_better = False
    real: Tensor
    generated: Tensor

    def _start(self) -> tuple[Tensor, Any]:
        return moments(torch.empty(0, self.extractor.num_features)), merged

    def _keep(self, name: str, looked: Features) -> None:
        setattr(self, name, merged((getattr(self, name), moments(looked.features))))

    def compute(self) -> Tensor:
        """The distance, NaN if an image is not finite. Called by all processes together."""
        real = self.reference or statistics_of(self.real)
        return self.generated.new_tensor(frechet_distance(real, statistics_of(self.generated)))


class FeatureSets(ImageMetric):
    """A metric by torch-fidelity that keeps all features.

    The reference, if given, is features of real images, for example a `Reference`'s. (M,
    num_features), float32.

    Attributes:
        kind: what is kept of `Features`.
        measure: numbers by name, of what is kept of generated and of real images.
    """

    kind = "features"
    measure: Callable[[Tensor, Tensor], dict[str, float]]
    real: list[Tensor] | Tensor
    generated: list[Tensor] | Tensor

    def _start(self) -> tuple[list[Tensor], str]:
        fidelity.require_installed(f"metrics such as {type(self).__name__}")
        return [], "cat"

    def _keep(self, name: str, looked: Features) -> None:
        rows = getattr(looked, self.kind)
        if rows is None:
            raise ValueError(f"the extractor must give {self.kind}, got none; choose another")
        getattr(self, name).append(rows)

    def compute(self) -> dict[str, Tensor]:
        """Numbers by name, NaN if an image is not finite. Called by all processes together."""
        real = _ordered(self.real) if self.reference is None else self.reference
        found = self.measure(_ordered(self.generated), real)
        values = torch.tensor(list(found.values()), dtype=torch.float64, device=self.device)
        return dict(zip(found, values, strict=True))


class KernelDistance(FeatureSets):
    """Mean and standard deviation over subsets, `kid` and `kid_std`; KID in `InceptionFeatures`."""

    measure = staticmethod(fidelity.kid)


class PrecisionRecall(FeatureSets):
    """Share of generated images near real ones, `precision`, and of real near generated ones."""

    measure = staticmethod(fidelity.precision_recall)


class InceptionScore(FeatureSets):
    """Mean and deviation over parts, `inception_score` and `inception_score_std`.

    The extractor must classify. Real images may be given as to other metrics, and count nothing.
    """

    kind = "logits"
    measure = staticmethod(lambda generated, real: fidelity.inception_score(generated))


def _ordered(rows: list[Tensor] | Tensor) -> Tensor:
    """All rows on the CPU, by their sum: subsets and parts must not depend on who had them."""
    joined = dim_zero_cat(rows).cpu() if len(rows) else torch.empty(0, 1)
    return joined[joined.double().sum(-1).argsort(stable=True)]
