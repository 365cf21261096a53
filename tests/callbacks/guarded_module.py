# SPDX-License-Identifier: Apache-2.0
"""The module that the guarded runs train, with the mistakes that a job asks for."""

import time

import torch
from broken_reduction import break_reduction
from gaussian import PATH
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import IterableDataset

from scm_lightning import DiffusionModule
from scm_lightning.data import Batch
from scm_lightning.modules import FlatCosine
from scm_lightning.networks import MLP

NUM_STEPS = 12


class Dummies(IterableDataset):
    """Batches of numbered samples; the module makes its own data."""

    def __init__(self, reach):
        self.reach = reach

    def __iter__(self):
        self.reach("loader", 0.2)
        numbers = torch.arange(7)
        return (Batch(torch.zeros(7, 3), None, 10 * each + numbers) for each in range(10_000))


class Guarded(DiffusionModule):
    """Trains on data that belong to the step and the process, whatever the loader is at."""

    def __init__(self, reach, rank, job):
        torch.manual_seed(5)
        network = MLP((3,), model_channels=10, num_blocks=1, emb_channels=8)
        if "unused" in job.get("mistake", ""):
            network.spare = nn.Parameter(torch.ones(2))
        super().__init__(
            network,
            PATH,
            weighting="learned",
            optimizer=lambda groups: torch.optim.RAdam(groups, lr=0.01),
            lr_schedule=lambda optimizer: FlatCosine(optimizer, NUM_STEPS, 3),
        )
        self.reach, self.rank, self.job = reach, rank, job
        self.batch_checks.first_samples = None

    def configure_model(self):
        if self.job.get("mistake") == "head left whole":
            for network in (self.network, self.ema.network):
                fully_shard(network, mesh=self.device_mesh["data_parallel"])
        else:
            super().configure_model()

    def on_fit_start(self):
        super().on_fit_start()
        if self.job.get("mistake") == "nothing reduced":
            self.trainer.strategy.model.register_comm_hook(None, keep_own)
        if self.job.get("mistake") == "parameter too late":
            self.late = nn.Parameter(torch.ones(2))
        break_reduction(self.network, self.job.get("mistake"))

    def training_step(self, batch, batch_idx):
        self.reach("first", 0.1)
        if self.job.get("mistake") == "bit flipped" and (batch_idx, self.rank) == (8, 1):
            next(self.network.parameters()).data.view(torch.int32)[0, 0] ^= 1
        time.sleep(0.02 if self.job.get("signal") else 0.0)
        place = [batch_idx, self.rank]
        generator = torch.Generator().manual_seed(100 * batch_idx + self.rank)
        x0 = PATH.sigma_data * torch.randn(7, 3, generator=generator)
        if place in self.job.get("bad", []):
            x0[4, 1] = self.job.get("value", float("nan"))
        outputs = super().training_step(Batch(x0, None, None), batch_idx)
        if batch_idx >= 3:
            self.reach("train", 0.0)
        if self.job.get("mistake") == "unused in 1" and self.rank == 0:
            outputs["loss"] = outputs["loss"] + 0 * self.network.spare.sum()
        if hasattr(self, "late"):
            outputs["loss"] = outputs["loss"] + (self.rank + 1) * self.late.sum()
        return outputs

    def validation_step(self, request, batch_idx):
        self.reach("sanity" if self.trainer.sanity_checking else "validation", 0.1)
        if self.job.get("mistake") == f"fails in {self.rank}" and self.trainer.global_step:
            raise ValueError(f"only process {self.rank} computes this")
        if self.job.get("mistake") == "fails everywhere" and self.trainer.global_step:
            raise ValueError("all processes compute this")

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        self.reach("save", 0.2)


def keep_own(state, bucket):
    """A hook in the place of the reduction of gradients."""
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future
