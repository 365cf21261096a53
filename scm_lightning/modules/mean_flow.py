# SPDX-License-Identifier: Apache-2.0
"""Training of a MeanFlow model: a second flow-map objective on the same tangent engine."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import (
    Bound,
    TimeProposal,
    TrigFlow,
    check_num_steps,
    mean_flow_loss,
    mean_flow_target,
    tangent_norm,
)
from scm_lightning.data.batch import Batch
from scm_lightning.modules.base import OptimizerFactory, ScheduleFactory, parameter_group
from scm_lightning.modules.ema import EMAProfile, HalfLife
from scm_lightning.modules.few_step import FewStepModule
from scm_lightning.modules.teacher import check_teacher, prepare_teacher
from scm_lightning.modules.velocity import PairVelocity, Velocity
from scm_lightning.sampling import MeanFlowSteps, SamplerSweep


class MeanFlowModule(FewStepModule):
    """A flow map x_s = x_t - (t - s) sigma_data F(x_t / sigma_data, t, s).

    Args:
        network: F(u, t, labels, guidance, t_end), built with `two_times: true`.
        velocity: `PairVelocity` trains from data; `TeacherVelocity` distils.
        teacher: a checkpoint of a `DiffusionModule` run, a network F, or None.
        start_from_teacher: whether the network starts with the teacher's weights.
        path: owner of `sigma_data`.
        times: which times to train at; of two drawn, the later one is t and the earlier one s.
        share_of_intervals: probability that s differs from t; where it does not, the loss is
            velocity matching.
        weight_power: p of the adaptive weight 1 / (distance + c)^p; 0 for none.
        weight_constant: c of the adaptive weight.
        tangents: how the derivative is computed.
        optimizer: makes the optimizer from parameter groups.
        lr_schedule: makes the learning-rate schedule, stepped with the optimizer; None for a
            constant rate.
        ema: profile of the averaged copy that is sampled from; or several profiles, of which the
            first is that one; see `GenerativeModule`.
        sampling_steps: numbers of equal steps from t_max to 0 that samples are drawn in.
        num_teacher_steps: steps N of Heun's solver when the teacher is sampled for comparison.
        sweep: further samplers to compare in `scm test`: over num_steps and ema.

    Raises:
        ValueError: if an option is out of range, or the teacher does not fit.

    Source: arXiv 2505.13447, Algorithm 1; 25 % intervals, p = 1, c = 1e-3 there.
    """

    module_kind = "mean_flow"

    def __init__(
        self,
        network: nn.Module,
        velocity: Velocity = PairVelocity(),
        teacher: str | nn.Module | None = None,
        start_from_teacher: bool = False,
        path: TrigFlow = TrigFlow(),
        times: TimeProposal = TimeProposal(P_mean=-0.8, P_std=1.6),
        share_of_intervals: float = 0.25,
        weight_power: float = 1.0,
        weight_constant: float = 1e-3,
        tangents: TangentComputer = TangentComputer(),
        optimizer: OptimizerFactory = lambda groups: Adam(groups, lr=1e-4, betas=(0.9, 0.95)),
        lr_schedule: ScheduleFactory | None = None,
        ema: EMAProfile | list[EMAProfile] = HalfLife(),
        sampling_steps: Sequence[int] = (1, 2),
        num_teacher_steps: int = 18,
        sweep: SamplerSweep | None = None,
    ) -> None:
        if not 0.0 <= share_of_intervals <= 1.0 or min(sampling_steps, default=0) < 1:
            raise ValueError(
                f"share_of_intervals is a probability and sampling_steps are at least 1, got "
                f"{share_of_intervals} and {list(sampling_steps)}; MeanFlow has 0.25"
            )
        check_num_steps(max(sampling_steps))
        teacher = prepare_teacher(teacher, network, path, start_from_teacher)
        super().__init__(
            network,
            path,
            optimizer,
            lr_schedule,
            ema,
            teacher=teacher,
            num_teacher_steps=num_teacher_steps,
            sampling_guidance=None,
            few_steps=MeanFlowSteps(path, sampling_steps),
            sweep=sweep,
        )
        self.network = network
        self.velocity_source = velocity
        self.times = times
        self.share_of_intervals = share_of_intervals
        self.weight_power = weight_power
        self.weight_constant = weight_constant
        self.tangents = tangents

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One batch.

        Returns:
            The loss; of every sample the time t, the loss and the norm of the residual, (B,) each.
        """
        x0, labels, _ = batch
        sigma_data = self.path.sigma_data
        t, t_end = self.sample_times(len(x0))
        x_t, z = self.path.add_noise(x0, t)
        dx_dt = self.velocity_source(
            x_t, t, x0, z, labels, None, path=self.path, teacher=self.teacher
        )
        F, duration_dF_dt = self.tangents(
            Bound(self.network, labels),
            x_t,
            t,
            dx_dt,
            sigma_data=sigma_data,
            t_end=t_end,
            scale=t - t_end,
        )
        target = mean_flow_target(duration_dF_dt, dx_dt, sigma_data=sigma_data)
        losses = mean_flow_loss(F, target, p=self.weight_power, c=self.weight_constant)
        loss = losses.mean()
        self.log("train/loss", loss)
        residual = tangent_norm(F.detach() - target)
        return {"loss": loss, "t": t, "sample_loss": losses.detach(), "tangent_norm": residual}

    def sample_times(self, num: int) -> tuple[Tensor, Tensor]:
        """Draw t and s <= t. (B,) each, radians."""
        one = self.times.sample(num, self.path, device=self.device)
        other = self.times.sample(num, self.path, device=self.device)
        apart = torch.rand(num, device=self.device) < self.share_of_intervals
        t = torch.maximum(one, other)
        return t, torch.where(apart, torch.minimum(one, other), t)

    def setup(self, stage: str) -> None:
        """Refuse to distil without a teacher.

        Raises:
            ValueError: if the velocity needs a teacher and there is none.
        """
        if stage == "fit":
            check_teacher(self.velocity_source, self.teacher)

    def trained_network(self) -> nn.Module:
        """The network."""
        return self.network

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: the network."""
        return [parameter_group(self.network)]
