# SPDX-License-Identifier: Apache-2.0
"""Training of a TrigFlow diffusion model: the teacher, or a network to sample from in itself."""

from typing import Any

from torch import Tensor, nn
from torch.optim import Adam

from scm_lightning.core import TimeProposal, TrigFlow, diffusion_loss
from scm_lightning.data.batch import Batch
from scm_lightning.modules.base import GenerativeModule, OptimizerFactory, ScheduleFactory
from scm_lightning.modules.ema import EMAProfile, HalfLife
from scm_lightning.sampling import Sampler, teacher_samplers


class DiffusionModule(GenerativeModule):
    """Velocity matching on the path, Eq. 4 of the paper.

    Args:
        network: F(u, t, labels, guidance).
        path: owner of `sigma_data`.
        times: which times to train at; EDM's by default.
        optimizer: makes the optimizer from parameter groups; the paper's on CIFAR-10 by default.
        lr_schedule: makes the learning-rate schedule, stepped with the optimizer; None for a
            constant rate.
        ema: profile of the averaged copy that is sampled from and that students start from.
        num_sampling_steps: steps N of Heun's solver in validation, test and predict, costing
            2 N - 1 network calls; the paper's 18 on CIFAR-10 by default.

    Source: arXiv 2410.11081, Section 3.1 and Appendix G.
    """

    module_kind = "diffusion"

    def __init__(
        self,
        network: nn.Module,
        path: TrigFlow = TrigFlow(),
        times: TimeProposal = TimeProposal(P_mean=-1.2, P_std=1.2),
        optimizer: OptimizerFactory = lambda groups: Adam(groups, lr=1e-3),
        lr_schedule: ScheduleFactory | None = None,
        ema: EMAProfile = HalfLife(),
        num_sampling_steps: int = 18,
    ) -> None:
        super().__init__(network, path, optimizer, lr_schedule, ema)
        self.network = network
        self.times = times
        self.num_sampling_steps = num_sampling_steps
        self.samplers()  # refuses a number of steps that has no grid

    def trained_network(self) -> nn.Module:
        """The network."""
        return self.network

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: the network."""
        return [{"params": list(self.network.parameters())}]

    def samplers(self) -> dict[str, Sampler]:
        """Heun's solver, and the network's own single step."""
        return teacher_samplers(self.ema.network, self.path, self.num_sampling_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        x0, labels = batch
        t = self.times.sample(len(x0), self.path, device=self.device)
        x_t, z = self.path.add_noise(x0, t)
        dx_dt = self.path.velocity(x0, z, t)
        F = self.network(x_t / self.path.sigma_data, t, labels)
        loss = diffusion_loss(F, dx_dt, sigma_data=self.path.sigma_data).mean()
        self.log("train/loss", loss)
        return loss
