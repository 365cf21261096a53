# SPDX-License-Identifier: Apache-2.0
"""Floor 4: how far samples are from data."""

import scm_lightning.torchvision_guard  # noqa: F401  before torch-fidelity
from scm_lightning.metrics.digits import DigitFeatures
from scm_lightning.metrics.dino import DINOv2Features
from scm_lightning.metrics.fashion import FashionFeatures
from scm_lightning.metrics.features import FeatureExtractor, Features
from scm_lightning.metrics.frechet import (
    RunningStatistics,
    Statistics,
    frechet_distance,
    statistics,
)
from scm_lightning.metrics.inception import InceptionFeatures
from scm_lightning.metrics.neighbours import nearest_distances
from scm_lightning.metrics.reference import Reference, TrainingData
from scm_lightning.metrics.samples import (
    JoinedSamples,
    SampleSet,
    from_first_process,
    in_first_process,
)
from scm_lightning.metrics.scores import Score, Scoring

__all__ = [
    "DINOv2Features",
    "DigitFeatures",
    "FashionFeatures",
    "FeatureExtractor",
    "Features",
    "InceptionFeatures",
    "JoinedSamples",
    "Reference",
    "RunningStatistics",
    "SampleSet",
    "Score",
    "Scoring",
    "Statistics",
    "TrainingData",
    "frechet_distance",
    "from_first_process",
    "in_first_process",
    "nearest_distances",
    "statistics",
]
