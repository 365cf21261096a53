# SPDX-License-Identifier: Apache-2.0
r"""Adaptive variational score distillation (VSD) beside the consistency loss.

    x0  = f(z', t_max)                                       the student's one-step samples
    L_VSD = e^w / D ||sigma_data F - sigma_data F^- - F_pre(x_t, t) + F_fake(x_t, t)||^2 - w
    L_fake = ||F_fake - v_t / sigma_data||^2 / D             on the student's samples

F_fake is a diffusion model of what the student draws now, F_pre the teacher; the gradient pulls the
student's distribution towards the teacher's. It sharpens, and at high guidance loses diversity.
Both networks take one step together, so one optimizer and automatic optimization suffice (ours: the
paper alternates one update each).
Source: arXiv 2410.11081, Appendix C and Table 5; VSD: arXiv 2305.16213.
Axes: B batch, ... data axes.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from scm_lightning.core import (
    Bound,
    Guided,
    TimeProposal,
    TrigFlow,
    at_least_float32,
    consistency_loss,
    diffusion_loss,
)
from scm_lightning.networks import WeightingHead
from scm_lightning.networks.magnitude import normalize_weights
from scm_lightning.objectives.term import Term, TermLoss


class AdaptiveVSD(Term):
    """The loss, its second network and its weighting head.

    Args:
        weight: weight of the VSD loss beside the consistency loss.
        times: times at which student and teacher are compared.
        fake_times: times at which the second network is trained.

    Source: arXiv 2410.11081, Table 5.
    """

    needs_teacher = True

    def __init__(
        self,
        weight: float = 1.0,
        times: TimeProposal = TimeProposal(P_mean=0.4, P_std=2.0),
        fake_times: TimeProposal = TimeProposal(P_mean=-0.8, P_std=1.6),
    ) -> None:
        super().__init__()
        self.weight = weight
        self.times = times
        self.fake_times = fake_times
        self.weighting_head = WeightingHead()
        self.fake: nn.Module = nn.Identity()

    def follow(self, student: nn.Module) -> None:
        """Start the second network as a copy of the student, which starts as the teacher."""
        self.fake = copy.deepcopy(student)

    def loss(self, student: Bound, teacher: Guided | None, path: TrigFlow, x0: Tensor) -> TermLoss:
        """Both losses on one batch of the student's samples; see `Term`.

        The data give shape and type alone.
        """
        assert teacher is not None, "ConsistencyModule checks this before training"
        normalize_weights(self.fake)  # no average follows it, so any time before its use will do
        fake = replace(student, network=self.fake)
        z = path.sigma_data * torch.randn_like(at_least_float32(x0))
        t_max = torch.full(x0.shape[:1], path.t_max(), dtype=z.dtype, device=z.device)
        F = at_least_float32(student(z / path.sigma_data, t_max))
        drawn = path.consistency(F.detach(), z, t_max)
        vsd = self._vsd(F, drawn, teacher, fake, path)
        of_fake = self._fake(drawn, fake, path)
        logs = {"train/vsd": vsd, "train/fake": of_fake}
        return TermLoss(self.weight * vsd + of_fake, logs)

    def _vsd(
        self, F: Tensor, drawn: Tensor, teacher: Guided, fake: Bound, path: TrigFlow
    ) -> Tensor:
        t = self.times.sample(len(drawn), path, device=drawn.device)
        x_t, _ = path.add_noise(drawn, t)
        u = x_t / path.sigma_data
        with torch.no_grad():
            direction = teacher(u, t) - at_least_float32(fake(u, t))
        return consistency_loss(path.sigma_data * F, direction, self.weighting_head(t)).mean()

    def _fake(self, drawn: Tensor, fake: Bound, path: TrigFlow) -> Tensor:
        t = self.fake_times.sample(len(drawn), path, device=drawn.device)
        x_t, z = path.add_noise(drawn, t)
        F_fake = fake(x_t / path.sigma_data, t)
        return diffusion_loss(F_fake, path.velocity(drawn, z, t), sigma_data=path.sigma_data).mean()
