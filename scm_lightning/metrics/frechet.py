# SPDX-License-Identifier: Apache-2.0
"""Frechet distance between sets of feature vectors, by torchmetrics."""

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


class _AlreadyFeatures(nn.Module):
    """Stands where torchmetrics wants a network: the features have been extracted already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetDistance(FrechetInceptionDistance):
    """Frechet distance of Gaussians fitted to real and to generated features, in float64.

    With another extractor than Inception the number is no FID, and is never called so.

    Args:
        num_features: length of a feature vector.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(feature=_AlreadyFeatures(num_features), reset_real_features=False)

    def update(self, features: Tensor, real: bool) -> None:
        """Add features to one of the sets. (B, num_features)."""
        super().update(features.double(), real)

    def share_reference(self, other: "FrechetDistance") -> None:
        """Take the real set of another distance, instead of computing it again."""
        for state in ("sum", "cov_sum", "num_samples"):
            name = f"real_features_{state}"
            setattr(self, name, getattr(other, name).clone())

    def compute(self) -> Tensor:
        """The distance, at least 0 up to rounding. Scalar, float64.

        Raises:
            ValueError: if a set has fewer than two members.
        """
        counts = (int(self.real_features_num_samples), int(self.fake_features_num_samples))
        if min(counts) < 2:
            raise ValueError(
                f"a Frechet distance needs at least 2 images in both sets, got {counts[0]} real "
                f"and {counts[1]} generated; draw more samples"
            )
        distance: Tensor = super().compute()
        return distance.to(torch.float64)
