# SPDX-License-Identifier: Apache-2.0
"""Gaussian noise in place of data: for measuring speed and memory at any shape."""

from collections.abc import Sequence

import torch

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: on
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from scm_lightning.data.batch import Batch


class GaussianNoise(LightningDataModule):
    """The same batch of noise again and again.

    Args:
        sigma_data: standard deviation of the noise; the path of the model owns the number.
        data_shape: shape of one sample.
        batch_size: samples of the batch.
        num_classes: classes that the labels run through; 0 for no labels.
    """

    def __init__(
        self,
        sigma_data: float,
        data_shape: Sequence[int],
        batch_size: int = 4,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        x0 = sigma_data * torch.randn(batch_size, *data_shape, generator=generator)
        labels = torch.arange(batch_size) % num_classes if num_classes else None
        self.batch = Batch(x0, labels)

    def train_dataloader(self) -> DataLoader[Batch]:
        """A thousand times the batch."""
        return DataLoader([self.batch] * 1000, batch_size=None)  # type: ignore[arg-type]
