# SPDX-License-Identifier: Apache-2.0
"""Distance to the nearest training image: copying shows as a distance near zero."""

import torch
from torch import Tensor
from torchmetrics import Metric


class NearestNeighbourDistance(Metric):
    """Mean Euclidean distance of samples to their nearest reference, in units of `sigma_data`.

    Held-out real data give the value to compare with: far below it, samples are copies (or
    blurred); far above, they are noisy.

    Args:
        reference: training data. (N, ...), data units.
        sigma_data: standard deviation of the data, in data units.
    """

    reference: Tensor
    total: Tensor
    num_samples: Tensor

    def __init__(self, reference: Tensor, sigma_data: float) -> None:
        super().__init__()
        self.sigma_data = sigma_data
        self.register_buffer("reference", reference.flatten(1), persistent=False)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, x0: Tensor) -> None:
        """Add samples. (B, ...), data units."""
        distances = torch.cdist(x0.flatten(1).float(), self.reference.float())
        self.total += distances.min(dim=1).values.double().sum()
        self.num_samples += len(x0)

    def compute(self) -> Tensor:
        """The mean distance. Scalar, float64, in units of `sigma_data`."""
        return self.total / self.num_samples / self.sigma_data
