# SPDX-License-Identifier: Apache-2.0
"""Floor 4: distances of samples from data."""

import scm_lightning.torchvision_guard  # noqa: F401  before torchmetrics
from scm_lightning.metrics.clips import ClipFeatures
from scm_lightning.metrics.digits import DigitFeatures, MovingDigitFeatures
from scm_lightning.metrics.dino import DINOv2Features
from scm_lightning.metrics.fashion import FashionFeatures
from scm_lightning.metrics.features import FeatureExtractor, Features
from scm_lightning.metrics.frechet import Statistics, frechet_distance, statistics
from scm_lightning.metrics.image_metrics import (
    FrechetDistance,
    ImageMetric,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
)
from scm_lightning.metrics.inception import InceptionFeatures
from scm_lightning.metrics.neighbours import nearest_distances
from scm_lightning.metrics.pixels import PixelFeatures
from scm_lightning.metrics.reference import Reference, TrainingData
from scm_lightning.metrics.scores import SampleScores, Score

__all__ = [
    "ClipFeatures",
    "DINOv2Features",
    "DigitFeatures",
    "FashionFeatures",
    "FeatureExtractor",
    "Features",
    "FrechetDistance",
    "ImageMetric",
    "InceptionFeatures",
    "InceptionScore",
    "KernelDistance",
    "MovingDigitFeatures",
    "PixelFeatures",
    "PrecisionRecall",
    "Reference",
    "SampleScores",
    "Score",
    "Statistics",
    "TrainingData",
    "frechet_distance",
    "nearest_distances",
    "statistics",
]
