# SPDX-License-Identifier: Apache-2.0
"""Distance to the nearest training image: copying shows as a distance near zero."""

import torch
from torch import Tensor


def nearest_distances(x0: Tensor, reference: Tensor, sigma_data: float) -> Tensor:
    """Euclidean distances of samples to their nearest reference, in units of `sigma_data`.

    Held-out real data give the value to compare the mean with: far below it, samples are copies (or
    blurred); far above, they are noisy.

    Args:
        x0: samples. (B, ...), data units.
        reference: training data. (N, ...), data units.
        sigma_data: standard deviation of the data, in data units.

    Returns:
        Distances. (B,), float32.
    """
    distances = torch.cdist(x0.flatten(1).float(), reference.flatten(1).float())
    return distances.min(dim=1).values / sigma_data
