# SPDX-License-Identifier: Apache-2.0
"""Output of the loaders: a batch to train on, or an order for samples to draw."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from scm_lightning.core import Conditions


class Batch(NamedTuple):
    """Data to train on or to compare with.

    Attributes:
        x0: data. (B, ...), data units: standard deviation `sigma_data`.
        labels: class labels. (B,) int64, or None.
        indices: numbers of the samples in their split, by which a report can name them.
            (B,) int64, or None.
        conditions: further conditions, by the names of the network's parameters. (B, ...) each.
        nulls: what stands for none of them, by the same names; zeros where a name is missing.
            Shape of one sample's each.
    """

    x0: Tensor
    labels: Tensor | None
    indices: Tensor | None = None
    conditions: Mapping[str, Tensor] = {}
    nulls: Mapping[str, Tensor] = {}

    def given(self) -> Conditions:
        """Labels and conditions by name, with what stands for none."""
        return Conditions(self.labels, self.conditions, self.nulls)


class SampleRequest(NamedTuple):
    """An order for samples: which ones, of which class.

    Attributes:
        indices: number of every sample, which with the seed fixes its noise whatever the batch it
            is drawn in. (B,) int64.
        labels: class labels. (B,) int64, or None.
        shape: shape of one sample.
        seed: seed of the whole set.
        conditions: further conditions, by the names of the network's parameters. (B, ...) each.
        nulls: what stands for none of them; see `Batch`.
        prompts: texts that the samples are drawn by, to be shown; empty for none. B of them.
    """

    indices: Tensor
    labels: Tensor | None
    shape: tuple[int, ...]
    seed: int
    conditions: Mapping[str, Tensor] = {}
    nulls: Mapping[str, Tensor] = {}
    prompts: Sequence[str] = ()

    def given(self) -> Conditions:
        """Labels and conditions by name, with what stands for none."""
        return Conditions(self.labels, self.conditions, self.nulls)
