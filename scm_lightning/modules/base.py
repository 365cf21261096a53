# SPDX-License-Identifier: Apache-2.0
"""What teacher and student have in common: EMA, optimizer, checkpoints, the drawing of samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from scm_lightning.core import TrigFlow, sample_generators, standard_normal
from scm_lightning.data.batch import Batch, SampleRequest
from scm_lightning.modules.ema import EMA, EMAProfile
from scm_lightning.sampling import Sampler, Samples
from scm_lightning.teachers import weights_mismatch
from scm_lightning.teachers.checkpoint import METADATA_KEY

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
ScheduleFactory = Callable[[Optimizer], LRScheduler]

STATISTICS_SAMPLES = 256
"""Samples that the standard deviation of the data is measured on, at the start of training."""
STATISTICS_TOLERANCE = 0.2
"""Largest relative distance of that measurement from `sigma_data`."""


class GenerativeModule(LightningModule, ABC):
    """A network trained on `Batch`es and sampled by `SampleRequest`s.

    Args:
        network: F(u, t, labels, guidance), the network that is trained.
        path: owner of `sigma_data`.
        optimizer: makes the optimizer from parameter groups.
        lr_schedule: makes the learning-rate schedule, stepped with the optimizer; None for a
            constant rate.
        ema: profile of the averaged copy that is sampled from.
    """

    module_kind: str
    """Written into checkpoints, to tell one kind of run from the other."""

    def __init__(
        self,
        network: nn.Module,
        path: TrigFlow,
        optimizer: OptimizerFactory,
        lr_schedule: ScheduleFactory | None,
        ema: EMAProfile,
    ) -> None:
        super().__init__()
        self.path = path
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.ema = EMA(network, ema)
        self._images_in_step = 0
        self._first_samples: list[Tensor] | None = []

    @abstractmethod
    def trained_network(self) -> nn.Module:
        """The network that the optimizer changes and the EMA follows."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""

    @abstractmethod
    def samplers(self) -> dict[str, Sampler]:
        """The run's own ways to draw samples, compared at every validation."""

    def reference_samplers(self) -> dict[str, Sampler]:
        """Further ways, compared in test and predict only: the teacher's, for a student."""
        return {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer over `parameter_groups`; override to train differently."""
        optimizer = self.optimizer(self.parameter_groups())
        if self.lr_schedule is None:
            return optimizer
        schedule = self.lr_schedule(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Count images; measure the first ones against `sigma_data`."""
        self._images_in_step += len(batch.x0) * self.trainer.world_size
        if self._first_samples is not None:
            self._check_statistics(batch.x0)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the average follow."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.trained_network(), self._images_in_step)
        self._images_in_step = 0

    def validation_step(self, request: SampleRequest, batch_idx: int) -> dict[str, Samples]:
        """Draw the requested samples with the run's own samplers."""
        return self.draw(request, self.samplers())

    def test_step(self, request: SampleRequest, batch_idx: int) -> dict[str, Samples]:
        """Draw the requested samples with all samplers."""
        return self.draw(request, self.reference_samplers() | self.samplers())

    def predict_step(self, request: SampleRequest, batch_idx: int) -> dict[str, Samples]:
        """Draw the requested samples with all samplers, and show the noise they start from."""
        samplers = self.reference_samplers() | self.samplers()
        noise = Sampler(0, lambda noise, labels, generators: noise)
        return self.draw(request, {"noise": noise} | samplers)

    def draw(self, request: SampleRequest, samplers: dict[str, Sampler]) -> dict[str, Samples]:
        """Draw the same samples, from the same noise, in several ways.

        Args:
            request: which samples, of which class.
            samplers: the ways, by name.

        Returns:
            Samples by name, (B, *request.shape) each.
        """
        drawn = {}
        for name, sampler in samplers.items():
            generators = sample_generators(request.indices.tolist(), request.seed)
            shape = (len(generators), *request.shape)
            noise = self.path.sigma_data * standard_normal(shape, generators, device=self.device)
            x0 = sampler.draw(noise, request.labels, generators)
            drawn[name] = Samples(x0, sampler.nfe)
        return drawn

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the checkpoint holds."""
        checkpoint[METADATA_KEY] = {
            "format_version": 1,
            "module": self.module_kind,
            "sigma_data": self.path.sigma_data,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model.

        Raises:
            ValueError: if the kind of run, `sigma_data` or a weight does not fit.
        """
        metadata = checkpoint.get(METADATA_KEY, {})
        for key, own in (("module", self.module_kind), ("sigma_data", self.path.sigma_data)):
            if metadata.get(key) != own:
                raise ValueError(
                    f"the checkpoint must be of a run with {key} {own}, got {metadata.get(key)}; "
                    "give the checkpoint that belongs to this configuration"
                )
        if mismatch := weights_mismatch(checkpoint["state_dict"], self):
            raise ValueError(
                f"the checkpoint does not fit the model: {mismatch}; give the checkpoint that "
                "belongs to this configuration"
            )

    def _check_statistics(self, x0: Tensor) -> None:
        """Collect the first samples; refuse them if their scale is not `sigma_data`."""
        assert self._first_samples is not None
        self._first_samples.append(x0.detach().float())
        if sum(map(len, self._first_samples)) < STATISTICS_SAMPLES:
            return
        samples = torch.cat(self._first_samples)
        self._first_samples = None
        std, sigma_data = float(samples.std()), self.path.sigma_data
        if not abs(std / sigma_data - 1.0) <= STATISTICS_TOLERANCE:
            raise ValueError(
                f"the data must have standard deviation sigma_data = {sigma_data:g}, got {std:.4g} "
                f"over {len(samples)} samples; set path.sigma_data to it, or scale the data"
            )
