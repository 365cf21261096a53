# SPDX-License-Identifier: Apache-2.0
"""Somebody else's module with distances of this package, for test_image_metrics.py.

As a program, `python foreign_module.py FOLDER`, it validates in two processes and keeps what
they log. Of the seven batches of an epoch the second process has two; of the others some are empty.
"""

import sys

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: on
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from scm_lightning.metrics import DigitFeatures, FrechetDistance, KernelDistance, fidelity

SIZES = ((9, 0), (5, 8), (0, 11), (13, 7), (6, 6), (8, 0), (7, 21))
"""Real and generated images of each batch."""
OF_SECOND = (2, 4)


def batches():
    """Real images and brighter ones. (B, 1, 8, 8) each."""
    generator = torch.Generator().manual_seed(0)
    noise = (torch.rand(sum(pair), 1, 8, 8, generator=generator) for pair in SIZES)
    return [(x[:num], x[num:] ** 0.7) for x, (num, _) in zip(noise, SIZES, strict=True)]


class Somebody(LightningModule):
    """Learns nothing; its validation measures."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(1, 1)
        self.fd = FrechetDistance(DigitFeatures())
        self.kernel = KernelDistance(DigitFeatures()) if fidelity.is_installed() else None

    def training_step(self, batch, batch_idx):
        return self.network(batch).sum()

    def validation_step(self, batch, batch_idx):
        for metric in filter(None, (self.fd, self.kernel)):
            metric.update(batch[0], real=True)
            metric.update(batch[1], real=False)
        self.log("fd", self.fd)

    def on_validation_epoch_end(self):
        if self.kernel is not None:
            self.log_dict(self.kernel.compute())
            self.kernel.reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), 0.1)

    def train_dataloader(self):
        return DataLoader(torch.ones(4, 1), batch_size=2)

    def val_dataloader(self):
        numbers = range(len(SIZES))
        if self.trainer.world_size > 1:
            second = self.trainer.global_rank == 1
            numbers = [number for number in numbers if (number in OF_SECOND) == second]
        everything = batches()
        return DataLoader([everything[number] for number in numbers], batch_size=None)


class Kept(Callback):
    """What was logged, by epoch, in a file of each process."""

    def __init__(self, folder):
        self.folder, self.epochs = folder, []

    def on_validation_end(self, trainer, pl_module):
        self.epochs.append({name: float(x) for name, x in trainer.callback_metrics.items()})

    def on_fit_end(self, trainer, pl_module):
        torch.save(self.epochs, f"{self.folder}/{trainer.world_size}.{trainer.global_rank}.pt")


def fit(folder, **options):
    """Log two epochs."""
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    Trainer(
        accelerator="cpu",
        max_epochs=2,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[Kept(folder)],
        **dict.fromkeys(quiet, False),
        **options,
    ).fit(Somebody())


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(sys.argv[1], devices=2, strategy="ddp_fork")
