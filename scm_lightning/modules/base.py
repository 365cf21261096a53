# SPDX-License-Identifier: Apache-2.0
"""What teacher and student have in common: EMA, optimizer, checkpoints, the drawing of samples."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from scm_lightning.core import NULL_LABEL, TrigFlow, sample_generators, standard_normal
from scm_lightning.data.batch import Batch, SampleRequest
from scm_lightning.modules.ema import EMA, EMAProfile, PowerFunction, distinct_profiles
from scm_lightning.modules.given_options import KeptSchedule, class_name, keep_options
from scm_lightning.modules.sharding import shard
from scm_lightning.modules.statistics import check_scale, sample_moments
from scm_lightning.networks import check_time_embeddings, normalize_weights
from scm_lightning.networks.classes import check_labels, num_known_classes
from scm_lightning.sampling import Sampler, Samples
from scm_lightning.teachers import weights_mismatch
from scm_lightning.teachers.checkpoint import METADATA_KEY

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
ScheduleFactory = Callable[[Optimizer], LRScheduler]

STATISTICS_SAMPLES = 256
"""Samples that the scale of the data is measured on, at the start of training; of a smaller set,
all."""

logger = logging.getLogger(__name__)


def parameter_group(module: nn.Module, lr: float | None = None) -> dict[str, Any]:
    """A module's parameters as a group of the optimizer; `lr` None for the optimizer's own rate."""
    group: dict[str, Any] = {"params": list(module.parameters())}
    return group if lr is None else {**group, "lr": lr}


class GenerativeModule(LightningModule, ABC):
    """A network trained on `Batch`es and sampled by `SampleRequest`s.

    Args:
        network: F(u, t, labels, guidance), the network that is trained.
        path: owner of `sigma_data`.
        optimizer: makes the optimizer from parameter groups.
        lr_schedule: makes the learning-rate schedule, stepped with the optimizer; None for a
            constant rate.
        ema: profile of the averaged copy that is sampled from; or several profiles, of which the
            first is that one and the others are only tracked, for `EMASnapshots`.
    """

    module_kind: str
    """Written into checkpoints, to tell one kind of run from the other."""

    def __init__(
        self,
        network: nn.Module,
        path: TrigFlow,
        optimizer: OptimizerFactory,
        lr_schedule: ScheduleFactory | None,
        ema: EMAProfile | Sequence[EMAProfile],
    ) -> None:
        super().__init__()
        check_time_embeddings(network, path.sigma_data)
        self.path = path
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        first, *others = distinct_profiles(ema)
        self.ema = EMA(network, first)
        self.further_emas = nn.ModuleList(EMA(network, profile) for profile in others)
        self._images_in_step = 0
        self._first_samples: list[Tensor] | None = []
        self._saved_optimizers: list[str] = []  # classes, in the checkpoint that is gone on from
        self._kept_schedules: list[KeptSchedule] = []
        self._num_known_classes: int | None = None

    @abstractmethod
    def trained_network(self) -> nn.Module:
        """The network that the optimizer changes and the EMA follows."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""

    @abstractmethod
    def samplers(self) -> dict[str, Sampler]:
        """The run's own ways to draw samples, compared at every validation."""

    def averages(self) -> list[EMA]:
        """Every averaged copy, the one that is sampled from first."""
        return [self.ema, *cast("Iterable[EMA]", self.further_emas)]

    def power_function_averages(self) -> dict[float, EMA]:
        """The averages that others can be reconstructed from, by their sigma_rel."""
        return {
            average.profile.sigma_rel: average
            for average in self.averages()
            if isinstance(average.profile, PowerFunction)
        }

    def reference_samplers(self) -> dict[str, Sampler]:
        """Further ways, compared in test and predict only: the teacher's, for a student."""
        return {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer over `parameter_groups`; override to train differently.

        Raises:
            ValueError: if a learning rate is no finite number of at least 0.
        """
        optimizer = self.optimizer(self.parameter_groups())
        rates = [group["lr"] for group in optimizer.param_groups]
        if not all(0 <= rate < math.inf for rate in rates):
            raise ValueError(
                f"a learning rate must be a finite number of at least 0, got {rates}; set lr of "
                "the optimizer, or weighting_lr"
            )
        if self.lr_schedule is None:
            return optimizer
        schedule = self.lr_schedule(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_model(self) -> None:
        """Shard the networks if the strategy asks for it: `--trainer.strategy fsdp2`."""
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Let every process draw times, noise and dropout masks of its own; keep the options.

        Lightning seeds all of them alike, and restores options with the state that comes next.
        """
        for place, optimizer in enumerate(self.trainer.optimizers):
            keep_options(optimizer, next(iter(self._saved_optimizers[place:]), None))
        self._kept_schedules = [
            KeptSchedule(config.scheduler) for config in self.trainer.lr_scheduler_configs
        ]
        if self.trainer.world_size > 1:
            seeds = torch.randint(2**62, (self.trainer.world_size,))
            torch.manual_seed(int(seeds[self.trainer.global_rank]))

    def on_train_start(self) -> None:
        """Let the schedules go on where the checkpoint left them, with the options given now."""
        configs = self.trainer.lr_scheduler_configs
        for config, kept in zip(configs, self._kept_schedules, strict=True):
            is_by_epoch = config.interval == "epoch"
            done = self.trainer.current_epoch if is_by_epoch else self.trainer.global_step
            if position := config.scheduler.last_epoch or done:  # a new one is at 0
                kept.go_on(position)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Count images; measure the first ones against `sigma_data`.

        Raises:
            ValueError: if their scale is another, or they are of classes that a network does not
                know.
        """
        self._check_labels(batch, NULL_LABEL)
        self._images_in_step += len(batch.x0) * self.trainer.world_size
        if self._first_samples is not None:
            self._check_statistics(batch.x0)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, force the weights of magnitude-preserving layers, let the averages follow."""
        super().optimizer_step(*args, **kwargs)
        if self._has_stepped():
            normalize_weights(self.trained_network())
            for average in self.averages():
                average.update(self.trained_network(), self._images_in_step)
        self._images_in_step = 0

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Move the learning rate, if there was a step."""
        if self._has_stepped():
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_batch_start(
        self, batch: SampleRequest, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Refuse to draw samples of classes that a network does not know."""
        self._check_labels(batch)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

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
        if not len(request.indices):
            # Sharded weights are gathered by all processes, with samples to draw or without.
            labels = None if request.labels is None else request.labels.new_zeros(1)
            spare = request._replace(indices=request.indices.new_zeros(1), labels=labels)
            return {
                name: Samples(samples.x0[:0], samples.nfe)
                for name, samples in self.draw(spare, samplers).items()
            }
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
            "trained": self._name_of(self.trained_network()),
            "averages": [average.profile.short_name for average in self.averages()],
            "optimizers": [class_name(each) for each in self.trainer.optimizers],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model.

        Raises:
            ValueError: if the kind of run, `sigma_data` or a weight does not fit.
        """
        metadata = checkpoint.get(METADATA_KEY, {})
        self._saved_optimizers = metadata.get("optimizers", [])
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

    def _has_stepped(self) -> bool:
        """Whether the last step changed weights: if not, `BadNumbers` took the gradients away."""
        return any(each.grad is not None for each in self.trained_network().parameters())

    def _name_of(self, network: nn.Module) -> str:
        names = (name for name, each in self.named_modules() if each is network)
        return str(next(names))

    def _check_labels(self, batch: Any, least: int = 0) -> None:
        """Refuse classes that a network does not know: by their number, or label by label."""
        labels = getattr(batch, "labels", None)
        if labels is None:
            return
        num_classes: int = getattr(getattr(self.trainer, "datamodule", None), "num_classes", 0)
        if self._num_known_classes is None:
            self._num_known_classes = num_known_classes(self)
        if 0 < self._num_known_classes < num_classes:
            raise ValueError(
                f"the data have {num_classes} classes, the network has {self._num_known_classes}; "
                f"set num_classes of the network to {num_classes}, or give data of its classes"
            )
        if not num_classes or labels.device.type == "cpu":  # a GPU would have to be waited for
            check_labels(labels, self._num_known_classes, least)

    def _check_statistics(self, x0: Tensor) -> None:
        """Collect the first samples, or all of a smaller set; refuse those of another scale."""
        assert self._first_samples is not None
        self._first_samples.append(sample_moments(x0))
        world_size, num_batches = self.trainer.world_size, self.trainer.num_training_batches
        num_samples = sum(each.shape[1] for each in self._first_samples) * world_size
        if num_samples < min(STATISTICS_SAMPLES, num_batches * len(x0) * world_size):
            return
        moments, self._first_samples = torch.cat(self._first_samples, 1), None
        # All processes must come to the same end, or those that go on wait for ever.
        total = partial(self.trainer.strategy.reduce, reduce_op="sum")
        warning = check_scale(moments, self.path.sigma_data, total)
        if warning is not None and self.trainer.is_global_zero:
            logger.warning(warning)
