# SPDX-License-Identifier: Apache-2.0
"""Training of a TrigFlow diffusion model: the teacher, or a network to sample from in itself."""

from collections.abc import Callable, Collection, Mapping
from inspect import signature
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Adam

from scm_lightning.core import TimeProposal, TrigFlow, diffusion_loss
from scm_lightning.data.batch import Batch
from scm_lightning.modules.base import GenerativeModule
from scm_lightning.modules.ema import EMAProfile, HalfLife
from scm_lightning.modules.optimizing import OptimizerFactory, ScheduleFactory, parameter_group
from scm_lightning.modules.starting import TEACHER, Init, begin, licence_of
from scm_lightning.modules.step_output import StepOutput
from scm_lightning.networks import WeightingHead
from scm_lightning.networks.classes import reads_no_labels
from scm_lightning.networks.condition_names import condition_names
from scm_lightning.networks.weighting import check_head
from scm_lightning.sampling import DiffusionSampling, Draw

Augmentation = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Data (B, ...) to augmented data and what was done to them, (B, augment_channels), or None."""


class DiffusionModule(GenerativeModule):
    """Velocity matching on the path, Eq. 4 of the paper.

    Args:
        network: F(u, t, labels, guidance), and conditions by name.
        path: owner of `sigma_data`.
        times: which times to train at; EDM's by default.
        weighting: "none" is Eq. 4. "learned" is EDM2's uncertainty weighting, the paper's on
            ImageNet: e^w times the loss minus w, with a head w(t) trained by the loss.
        weighting_lr: learning rate of the weighting head; None for the network's.
        condition_dropout: probability of hiding the label and all conditions of a sample, so that
            the model can guide itself; the paper's teachers on ImageNet 512 have 0.1. Or a
            probability for each, by its name ("labels", "text"), for guidance by each apart.
        augmentation: changes the training data and tells the network how; None for data as they
            are.
        optimizer: makes the optimizer from parameter groups; the paper's on CIFAR-10 by default.
        lr_schedule: makes the learning-rate schedule, stepped with the optimizer; None for a
            constant rate.
        ema: profile of the averaged copy that is sampled from and that students start from; or
            several profiles, of which the first is that one; see `GenerativeModule`.
        sampling: how it is sampled in validation, test and predict.
        init: weights that the network begins with: a checkpoint or export; a network, those of
            `scm_lightning.teachers` among them; or None for random ones. Those that fit are copied,
            and the others named.

    Raises:
        ValueError: if an option is unknown or out of range, or `init` has no such weights.

    Source: arXiv 2410.11081, Section 3.1 and Appendix G.
    """

    module_kind = "diffusion"

    def __init__(
        self,
        network: nn.Module,
        path: TrigFlow = TrigFlow(),
        times: TimeProposal = TimeProposal(P_mean=-1.2, P_std=1.2),
        weighting: Literal["none", "learned"] = "none",
        weighting_lr: float | None = None,
        condition_dropout: float | dict[str, float] = 0.0,
        augmentation: Augmentation | None = None,
        optimizer: OptimizerFactory = lambda groups: Adam(groups, lr=1e-3),
        lr_schedule: ScheduleFactory | None = None,
        ema: EMAProfile | list[EMAProfile] = HalfLife(),
        sampling: DiffusionSampling = DiffusionSampling(),
        init: Init = None,
    ) -> None:
        given = condition_dropout
        probabilities = given.values() if isinstance(given, dict) else [given]
        if not all(0.0 <= each < 1.0 for each in probabilities):
            raise ValueError(
                f"condition_dropout must be a probability below 1, got {condition_dropout}; "
                "paper: 0.1"
            )
        check_head(weighting, weighting_lr)
        if init == TEACHER:
            raise ValueError(
                "init must be a file or a network, a diffusion model has no teacher; got teacher"
            )
        begun = begin(network, init, None, path)
        super().__init__(network, path, optimizer, lr_schedule, ema)
        self.licence = licence_of(begun)
        self.network = network
        self.weighting_head = WeightingHead() if weighting == "learned" else None
        self.weighting_lr = weighting_lr
        self.times = times
        self.condition_dropout = condition_dropout
        self.augmentation = augmentation
        self.sampling = sampling

    def setup(self, stage: str) -> None:
        """Refuse options that a training would ignore.

        Raises:
            ValueError: if guidance of sampling is set and no label is dropped, labels are dropped
                that the network does not read, or it is not told of an augmentation.
        """
        parameters = signature(self.network.forward).parameters.values()
        is_told = any(
            each.name == "augment" or each.kind is each.VAR_KEYWORD for each in parameters
        )
        if stage == "fit" and self.augmentation is not None and not is_told:
            raise ValueError(
                f"augmentation needs a network that is told of it, got "
                f"{type(self.network).__name__}, whose forward takes no augment; take a UNet with "
                "augment_channels 9, or set augmentation to null"
            )
        takes_none = reads_no_labels(self.network) and condition_names(self.network).takes_none
        if stage == "fit" and self.condition_dropout and takes_none:
            raise ValueError(
                "condition_dropout hides labels and conditions from a network, but this one takes "
                f"none, got {self.condition_dropout}; set num_classes of the network, or the "
                "option to 0"
            )
        guidance, dropout = self.sampling.guidance, self.condition_dropout
        if stage == "fit" and guidance not in (None, 1.0) and not dropout:
            raise ValueError(
                f"guidance of sampling needs a network that is trained without classes too, got "
                f"{guidance} and condition_dropout 0; set that, the paper's is 0.1, or guidance to "
                "null"
            )
        if stage == "fit" and isinstance(guidance, Mapping):
            hidden = dropout if isinstance(dropout, Mapping) else {}
            if not all(hidden.get(name) for name in guidance):
                raise ValueError(
                    "guidance of each condition apart needs a network that is trained without "
                    f"each alone, got condition_dropout {dropout}; give a probability for each, "
                    f"such as {dict.fromkeys(guidance, 0.1)}"
                )

    def named_conditions(self) -> dict[str, Collection[str]]:
        """Conditions that are hidden and guided towards, each apart."""
        options = {
            "condition_dropout": self.condition_dropout,
            "sampling.guidance": self.sampling.guidance,
        }
        return {name: each for name, each in options.items() if isinstance(each, Mapping)}

    def trained_network(self) -> nn.Module:
        """The network."""
        return self.network

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network; with learned weighting, a second group for its head."""
        network = parameter_group(self.network)
        if self.weighting_head is None:
            return [network]
        return [network, parameter_group(self.weighting_head, self.weighting_lr)]

    def draws(self) -> dict[str, Draw]:
        """The solver, and the network's own single step."""
        return self.sampling.draws(self.ema.network, self.path)

    def times_at(self, t: Tensor) -> Tensor:
        """The times themselves."""
        return t

    def training_step(
        self, batch: Batch, batch_idx: int, times: Tensor | None = None
    ) -> StepOutput:
        """Compute the loss of one batch.

        Args:
            batch: data.
            batch_idx: number of the batch.
            times: times to train at. (B,), radians; None draws them.

        Returns:
            See `StepOutput`.
        """
        x0, augmented = self.augment(batch.x0, batch.conditions)
        labels, named, _ = batch.given().dropped(self.condition_dropout)
        t = times
        if t is None:
            t = self.times.sample(len(x0), self.path, device=self.device)
        x_t, z = self.path.add_noise(x0, t)
        dx_dt = self.path.velocity(x0, z, t)
        F = self.network(x_t / self.path.sigma_data, t, labels, **named, **augmented)
        w = None if self.weighting_head is None else self.weighting_head(t)
        losses = diffusion_loss(F, dx_dt, sigma_data=self.path.sigma_data, log_weight=w)
        loss = losses.mean()
        logs = {"train/loss": loss.detach()}
        return StepOutput(loss=loss, t=t, sample_loss=losses.detach(), logs=logs)

    def augment(
        self, x0: Tensor, conditions: Mapping[str, Tensor] = {}
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Augment data; report how in a condition that only such networks take.

        Args:
            x0: data. (B, ...), data units.
            conditions: conditions of the data, which are not augmented. (B, ...) each.

        Returns:
            Data, (B, ...), and the network's further arguments.

        Raises:
            ValueError: if a condition is an image of the data's size, which would no longer fit.
        """
        if self.augmentation is None:
            return x0, {}
        for name, x in conditions.items():
            if x.ndim == x0.ndim and x.shape[2:] == x0.shape[2:]:
                raise ValueError(
                    f"augmentation moves the data but not the condition {name}, an image of their "
                    "size; set augmentation to null"
                )
        x0, augment = self.augmentation(x0)
        return x0, {} if augment is None else {"augment": augment}
