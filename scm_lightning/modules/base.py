# SPDX-License-Identifier: Apache-2.0
"""Base of teacher and student: EMA, optimizer, checkpoints, the drawing of samples."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from scm_lightning.core import TrigFlow, in_run
from scm_lightning.data.batch import Batch, SampleRequest
from scm_lightning.modules.batch_checks import BatchChecks
from scm_lightning.modules.drawing import draw_samples
from scm_lightning.modules.ema import EMA, EMAProfile, PowerFunction, distinct_profiles
from scm_lightning.modules.given_options import (
    KeptSchedule,
    class_name,
    go_on,
    keep_options,
    say_untrained,
)
from scm_lightning.modules.loaded_checkpoints import check_fits, name_in, update_names
from scm_lightning.modules.moved_methods import MovedMethods
from scm_lightning.modules.optimizing import OptimizerFactory, ScheduleFactory, check_rates
from scm_lightning.modules.outlook import say_outlook
from scm_lightning.modules.sharding import shard
from scm_lightning.modules.starting import united
from scm_lightning.modules.step_output import exactly
from scm_lightning.networks import check_time_embeddings, normalize_weights
from scm_lightning.networks.condition_names import ConditionNames, condition_names
from scm_lightning.sampling import Draw, Samples
from scm_lightning.storage.saved_run import METADATA_KEY


class GenerativeModule(LightningModule, MovedMethods, ABC):
    """A network trained on `Batch`es and sampled by `SampleRequest`s.

    Args:
        network: F(u, t, labels, guidance), the network that is trained.
        path: owner of `sigma_data`.
        optimizer: makes the optimizer from parameter groups.
        lr_schedule: makes the learning-rate schedule, stepped with the optimizer; None for a
            constant rate. Its lengths may be shares of the run, if it is one of this package.
        ema: profile of the averaged copy that is sampled from; or several profiles, of which the
            first is that one and the others are only tracked, for `EMASnapshots`.
    """

    moved: ClassVar[Mapping[str, str]] = {
        "samplers": "draws",
        "reference_samplers": "reference_draws",
    }

    module_kind: str
    """Written into checkpoints, to tell one kind of run from the other."""
    licence: str | None = None
    """Licence of the weights that a run is made of, carried into what is made of it."""

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
        self._is_left_out = False
        self.batch_checks = BatchChecks(path.sigma_data)
        self._saved_optimizers: list[str] = []  # classes, in the checkpoint that is gone on from
        self._kept_schedules: list[KeptSchedule] = []

    @abstractmethod
    def trained_network(self) -> nn.Module:
        """The network that the optimizer changes and the EMA follows."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""

    @abstractmethod
    def draws(self) -> dict[str, Draw]:
        """The run's own ways to draw samples, compared at every validation."""

    @abstractmethod
    def times_at(self, t: Tensor) -> Any:
        """Return the `times` with which `training_step` trains at chosen ones.

        Args:
            t: times. (B,), radians.
        """

    def taken_conditions(self) -> list[ConditionNames]:
        """Names of the conditions that every network takes."""
        return [condition_names(self.trained_network())]

    def named_conditions(self) -> dict[str, Collection[str]]:
        """Conditions that options name, by option."""
        return {}

    def parts_of_run(self) -> dict[str, str]:
        """Further parts that a checkpoint must agree in: their kinds, by a name for the message."""
        return {}

    def averages(self) -> list[EMA]:
        """Every averaged copy, the one that is sampled from first."""
        return [self.ema, *cast("Iterable[EMA]", self.further_emas)]

    def power_function_averages(self) -> dict[float, EMA]:
        """Averages from which others can be reconstructed, by their sigma_rel."""
        return {
            average.profile.sigma_rel: average
            for average in self.averages()
            if isinstance(average.profile, PowerFunction)
        }

    def reference_draws(self) -> dict[str, Draw]:
        """Further ways, compared in test and predict only: the teacher's, for a student."""
        return {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer over `parameter_groups`; override to train differently.

        Raises:
            ValueError: if a learning rate is not a finite number of at least 0.
        """
        optimizer = self.optimizer(self.parameter_groups())
        check_rates(optimizer)
        if self.lr_schedule is None:
            return optimizer
        with in_run(self.max_steps):
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
        say_untrained(self, self.trainer.optimizers)
        for place, optimizer in enumerate(self.trainer.optimizers):
            keep_options(optimizer, next(iter(self._saved_optimizers[place:]), None))
        self._kept_schedules = [
            KeptSchedule(config.scheduler) for config in self.trainer.lr_scheduler_configs
        ]
        if self.trainer.world_size > 1:
            seeds = torch.randint(2**62, (self.trainer.world_size,))
            torch.manual_seed(int(seeds[self.trainer.global_rank]))

    def on_train_start(self) -> None:
        """Continue the schedules where the checkpoint left them; say what they will reach."""
        go_on(self.trainer, self._kept_schedules)
        say_outlook(self.trainer, self.at_step)

    @property
    def steps_taken(self) -> int:
        """Optimizer steps so far; 0 outside of a run."""
        return 0 if self._trainer is None else self.trainer.global_step

    @property
    def max_steps(self) -> int | None:
        """Optimizer steps of the run; None outside of one, or if it has no such number."""
        is_counted = self._trainer is not None and self.trainer.max_steps >= 0
        return self.trainer.max_steps if is_counted else None

    def at_step(self, step: int) -> dict[str, float]:
        """Numbers of the loss that change with the step, by name: columns of the log.

        Args:
            step: optimizer steps taken so far.
        """
        return {}

    def leave_out_step(self) -> None:
        """Count the coming step as not taken: averages and learning rates stay as they are.

        For callbacks that take its gradients away, in `on_before_optimizer_step`.
        """
        self._is_left_out = True

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Count images; measure the first ones against `sigma_data`, and the teacher on them.

        Raises:
            ValueError: if their scale is another, they are of classes or conditions that a network
                does not know, or the teacher is of other data.
        """
        self.batch_checks.check_kind(batch, Batch)
        self.batch_checks.check_given(self, batch)
        self._images_in_step += len(batch.x0) * self.trainer.world_size
        self.batch_checks.check_scale(self, batch.x0)
        self.batch_checks.check_teacher(self, batch)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the rate of the trained network, and `at_step`, where Lightning writes a row."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.steps_taken + 1) % every == 0:
            rates = {"lr": float(optimizer.param_groups[0]["lr"])}
            numbers = rates | self.at_step(self.steps_taken)
            self.log_dict({name: exactly(value) for name, value in numbers.items()})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, force the weights of magnitude-preserving layers, let the averages follow."""
        super().optimizer_step(*args, **kwargs)
        if not self._is_left_out:
            normalize_weights(self.trained_network())
            for average in self.averages():
                average.update(self.trained_network(), self._images_in_step)
        self._images_in_step = 0

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Move the learning rate, if there was a step."""
        if not self._is_left_out:
            super().lr_scheduler_step(scheduler, metric)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log what the step says of itself; it logs nothing, so that anyone may call it."""
        self._is_left_out = False
        if isinstance(outputs, dict):
            self.log_dict(outputs.get("logs", {}))

    def on_validation_batch_start(
        self, batch: SampleRequest, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Refuse to draw samples of classes or conditions that a network does not know."""
        self.batch_checks.check_given(self, batch)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def validation_step(self, request: SampleRequest, batch_idx: int) -> dict[str, Samples]:
        """Draw the requested samples with the run's own samplers."""
        return self.draw(request, self.draws())

    def test_step(self, request: SampleRequest, batch_idx: int) -> dict[str, Samples]:
        """Draw the requested samples with all samplers."""
        return self.draw(request, self.reference_draws() | self.draws())

    def predict_step(self, request: SampleRequest, batch_idx: int) -> dict[str, Samples]:
        """Draw the requested samples with all samplers, and show the noise they start from."""
        draws = self.reference_draws() | self.draws()
        return self.draw(request, {"noise": lambda noise, given, generators: noise} | draws)

    def draw(self, request: SampleRequest, draws: Mapping[str, Draw]) -> dict[str, Samples]:
        """Draw the same samples, from the same noise, in several ways.

        Args:
            request: which samples, of which class.
            draws: the ways, by name.

        Returns:
            Samples by name, (B, *request.shape) each.

        Raises:
            ValueError: if it is no request.
        """
        self.batch_checks.check_kind(request, SampleRequest)
        return draw_samples(self, request, draws, self.path.sigma_data, self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the checkpoint holds."""
        checkpoint[METADATA_KEY] = {
            "format_version": 1,
            "module": self.module_kind,
            "sigma_data": self.path.sigma_data,
            "trained": name_in(self, self.trained_network()),
            "averages": [average.profile.short_name for average in self.averages()],
            "optimizers": [class_name(each) for each in self.trainer.optimizers],
            **self.parts_of_run(),
            **({} if self.licence is None else {"licence": self.licence}),
        }

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """Build the model from its arguments and load its weights; see Lightning.

        Raises:
            ValueError: if arguments are missing: a checkpoint holds none of them.
        """
        try:
            return super().load_from_checkpoint(*args, **kwargs)
        except TypeError as error:
            raise ValueError(
                f"a checkpoint holds weights and no options; pass those of the run by name, such "
                f"as its network and path, since {error}"
            ) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model.

        Raises:
            ValueError: if the kind of run, a part of it, `sigma_data` or a weight does not fit.
        """
        update_names(checkpoint)
        self._saved_optimizers = checkpoint.get(METADATA_KEY, {}).get("optimizers", [])
        self.licence = united(self.licence, checkpoint.get(METADATA_KEY, {}).get("licence"))
        own = {"module": self.module_kind, "sigma_data": self.path.sigma_data}
        check_fits(checkpoint, self, own, self.parts_of_run())
