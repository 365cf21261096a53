# SPDX-License-Identifier: Apache-2.0
"""Conditions that are computed of the data, such as an image's low resolution."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Degradation(ABC):
    """Conditions computed of the data themselves: an image at a low resolution, or with a hole.

    The shards hold none of them: they are computed whenever a batch is made, after a flip, and of
    held-out samples for the samples that are drawn. What is drawn at random follows from the
    generators alone, so that a run continues to the bit, whatever the number of workers and
    processes. An object must be one that can be pickled: workers get a copy.

        class Gray(Degradation):
            def shapes(self, data_shape):
                return {"image": (1, *data_shape[1:])}

            def __call__(self, data, generators):
                return {"image": data.mean(1, keepdim=True)}
    """

    @abstractmethod
    def shapes(self, data_shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the conditions of one sample, by the names of the network's parameters.

        Args:
            data_shape: shape of one sample. (C, H, W), or (C, F, H, W).

        Raises:
            ValueError: if there are none of data of that shape.
        """

    @abstractmethod
    def __call__(self, data: Tensor, generators: Sequence[torch.Generator]) -> Mapping[str, Tensor]:
        """Compute the conditions of a batch.

        Args:
            data: images, (B, *data_shape), from -1, black, to 1, white, like stored pictures;
                latents and other numbers have unit variance. Must not be changed in place.
            generators: one per sample, for all that is drawn at random. B of them, on the CPU.

        Returns:
            Conditions by name, float32, on the scale of the data. (B, ...) each.
        """

    def differences(self, data: Tensor, conditions: Mapping[str, Tensor]) -> Tensor | None:
        """Differences between samples and what they were given: of as many numbers as are known.

        Args:
            data: samples drawn by the conditions, as above. (B, *data_shape).
            conditions: what they were drawn by. (B, ...) each.

        Returns:
            Differences on the scale of the data, (B, ...); None to measure none.
        """
        return None
