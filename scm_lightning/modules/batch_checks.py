# SPDX-License-Identifier: Apache-2.0
"""Checks of a run's batches: their classes and conditions, and the scale of the first ones."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from scm_lightning.core import NULL_LABEL, Conditions
from scm_lightning.data.batch import Batch, SampleRequest
from scm_lightning.modules.statistics import check_scale, sample_moments
from scm_lightning.modules.teacher_look import check_first_batch
from scm_lightning.networks.classes import check_labels, num_known_classes

STATISTICS_SAMPLES = 256
"""Samples on which the scale of the data is measured as training starts; all of a smaller set."""

logger = logging.getLogger(__name__)


class BatchChecks:
    """Checks that refuse batches a module cannot be trained on or sampled by.

    Args:
        sigma_data: standard deviation that the data should have. Data units.
    """

    def __init__(self, sigma_data: float) -> None:
        self.sigma_data = sigma_data
        self.first_samples: list[Tensor] | None = []
        self._teacher_has_looked = False
        self._num_known_classes: int | None = None
        self._fitting_names: list[str] | None = None

    @staticmethod
    def check_kind(batch: Any, kind: type[Batch] | type[SampleRequest]) -> None:
        """Refuse a batch of another kind, such as the list that a loader makes of tuples.

        Args:
            batch: what the loader hands over.
            kind: what it must be, or be alike.

        Raises:
            ValueError: if it has not the first attribute of that kind, or no `given`.
        """
        names = list(kind.__annotations__)
        if not hasattr(batch, names[0]) or not hasattr(batch, "given"):
            raise ValueError(
                f"batches must be scm_lightning.data.{kind.__name__}({', '.join(names)}), got a "
                f"{type(batch).__name__}; return that from the loader's collate_fn"
            )

    def check_given(self, module: Any, batch: Any) -> None:
        """Refuse conditions of a batch that do not fit the networks, or the options.

        Args:
            module: a `GenerativeModule` in a trainer.
            batch: data, or a request: for no class only by a prompt. Anything else is what a step
                of a subclass takes, and passes.

        Raises:
            ValueError: if there are some.
        """
        has_classes = isinstance(batch, SampleRequest) and not batch.prompts
        self.check_classes(module, batch, 0 if has_classes else NULL_LABEL)
        if hasattr(batch, "given"):
            self._check_named(module, batch[0], batch.given())

    def check_classes(self, module: LightningModule, batch: Any, least: int = 0) -> None:
        """Refuse classes that a network does not know: by their number, or label by label.

        Args:
            module: owner of the networks, in a trainer.
            batch: data or a request, with `labels` or without.
            least: smallest label there may be.

        Raises:
            ValueError: if there are some; or if a network is trained that knows classes, on data
                that have none.
        """
        labels = getattr(batch, "labels", None)
        datamodule = getattr(module.trainer, "datamodule", None)
        num_classes: int = getattr(datamodule, "num_classes", 0)
        if self._num_known_classes is None:
            self._num_known_classes = num_known_classes(module)
        if labels is None:
            has_none = getattr(datamodule, "num_classes", None) == 0
            if module.trainer.training and has_none and self._num_known_classes:
                raise ValueError(
                    f"the network has {self._num_known_classes} classes, but the data hand on no "
                    "labels; set num_classes of the network to 0, or give data with labels and "
                    "use_labels true"
                )
            return
        if 0 < self._num_known_classes < num_classes:
            raise ValueError(
                f"the data have {num_classes} classes, the network has {self._num_known_classes}; "
                f"set num_classes of the network to {num_classes}, or give data of its classes"
            )
        if not num_classes or labels.device.type == "cpu":  # a GPU would have to be waited for
            check_labels(labels, self._num_known_classes, least)

    def _check_named(self, module: Any, first: Tensor, given: Conditions) -> None:
        """Refuse names that do not fit each other, and what is not one per sample."""
        named: Mapping[str, Any] = given.named
        for name, x in named.items():
            if not isinstance(x, Tensor) or len(x) != len(first):
                size = f"one of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
                raise ValueError(
                    f"the condition {name} must be a tensor of {len(first)} samples, (B, ...), got "
                    f"{size}; correct the batch"
                )
        if self._fitting_names != [*named]:
            for taken in module.taken_conditions():
                taken.check([*named])
            given.check_nulls()
            for option, names in module.named_conditions().items():
                given.check_names(option, names)
            self._fitting_names = [*named]

    def check_scale(self, module: LightningModule, x0: Tensor) -> None:
        """Collect the first samples, or all of a smaller set; refuse those of another scale.

        Args:
            module: in a trainer.
            x0: data. (B, C, ...), data units.

        Raises:
            ValueError: if they are of another scale, in all processes alike.
        """
        if self.first_samples is None:
            return
        self.first_samples.append(sample_moments(x0))
        trainer = module.trainer
        num_samples = sum(each.shape[1] for each in self.first_samples) * trainer.world_size
        num_in_set = trainer.num_training_batches * len(x0) * trainer.world_size
        if num_samples < min(STATISTICS_SAMPLES, num_in_set):
            return
        moments, self.first_samples = torch.cat(self.first_samples, 1), None
        # All processes must come to the same end, or those that go on wait for ever.
        total = partial(trainer.strategy.reduce, reduce_op="sum")
        warning = check_scale(moments, self.sigma_data, total)
        if warning is not None and trainer.is_global_zero:
            logger.warning(warning)

    def check_teacher(self, module: Any, batch: Batch) -> None:
        """Let the teacher of a student denoise the first batch; see `check_first_batch`.

        Args:
            module: a `GenerativeModule` in a trainer.
            batch: data.
        """
        teacher = getattr(module, "teacher", None)
        if teacher is not None and not self._teacher_has_looked:
            check_first_batch(teacher, batch, module.path, module.trainer)
        self._teacher_has_looked = True
