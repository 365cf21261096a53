# SPDX-License-Identifier: Apache-2.0
"""Output of the loaders: a batch to train on, or an order for samples to draw."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Data to train on or to compare with.

    Attributes:
        x0: data. (B, ...), data units: standard deviation `sigma_data`.
        labels: class labels. (B,) int64, or None.
        indices: numbers of the samples in their split, by which a report can name them.
            (B,) int64, or None.
    """

    x0: Tensor
    labels: Tensor | None
    indices: Tensor | None = None


class SampleRequest(NamedTuple):
    """An order for samples: which ones, of which class.

    Attributes:
        indices: number of every sample, which with the seed fixes its noise whatever the batch it
            is drawn in. (B,) int64.
        labels: class labels. (B,) int64, or None.
        shape: shape of one sample.
        seed: seed of the whole set.
    """

    indices: Tensor
    labels: Tensor | None
    shape: tuple[int, ...]
    seed: int
