# SPDX-License-Identifier: Apache-2.0
"""Training of a consistency model: sCT and sCD, Algorithm 1 of the paper, literally.

The reading path starts at `training_step`.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import RAdam

from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import (
    Bound,
    GuidanceProposal,
    Segments,
    TimeGrid,
    TimeProposal,
    TrigFlow,
    clip_tangent,
    consistency_loss,
    normalize_tangent,
    tangent,
    tangent_norm,
    tangent_warmup,
)
from scm_lightning.data.batch import Batch
from scm_lightning.modules.adaptive_vsd import AdaptiveVSD
from scm_lightning.modules.base import OptimizerFactory, ScheduleFactory, parameter_group
from scm_lightning.modules.discrete import discrete_step
from scm_lightning.modules.ema import EMAProfile, HalfLife
from scm_lightning.modules.few_step import FewStepModule
from scm_lightning.modules.teacher import check_teacher, prepare_teacher
from scm_lightning.modules.velocity import Velocity
from scm_lightning.networks import WeightingHead
from scm_lightning.sampling import ConsistencySteps, SamplerSweep, SegmentSteps


class ConsistencyModule(FewStepModule):
    """A consistency model f(x_t, t) = cos(t) x_t - sin(t) sigma_data F, trained in continuous time.

    To change a part, override the method that is named for it: `sample_times`, `velocity`,
    `student_and_tangent`, `bound_tangent`, `log_weight`, `further_loss`, `configure_optimizers`,
    `training_step`.

    Args:
        student: F(u, t, labels, guidance), the network that is trained.
        velocity: `PairVelocity` makes it consistency training (sCT), `TeacherVelocity`
            consistency distillation (sCD).
        teacher: a checkpoint of a `DiffusionModule` run, whose averaged weights are loaded into a
            copy of the student; or any network F; or None.
        start_from_teacher: whether the student starts with the teacher's weights, as the paper's
            does in sCT and sCD. Set to false for a student of another architecture.
        path: owner of `sigma_data`.
        times: which times to train at; the paper's on CIFAR-10 by default.
        tangents: how the derivative is computed.
        compile: whether value and derivative are compiled, as one graph; the compiled derivative of
            the first batch is compared with the eager one, and the run refused if they differ.
        tangent_bound: what is done to g. "l2" divides it by its norm plus a constant, per sample;
            "rms" by the root mean square plus the constant; "clip" clips its elements to [-1, 1];
            "none" leaves it, which the paper finds unstable.
        tangent_norm_constant: c in g / (||g|| + c), in units of the norm.
        tangent_warmup_steps: length H of the warm-up of r, in optimizer steps; 0 for none.
        weighting: "learned" is the adaptive weight w_phi(t), started at its optimum; "none" keeps
            it there.
        prior: "folded" is Algorithm 1, whose g holds the prior weight already. "extra" multiplies
            the loss by 1 / (sigma_data tan t) once more, as several public ports do.
        weighting_lr: learning rate of the weighting head; None for the student's.
        guidance: scales that the teacher is guided by while the student learns them as an input;
            the student is built with `guided: true`, the teacher trained with dropped labels. None
            for no guidance.
        num_segments: parts M that the path is cut into. 1 is the consistency model; with more, the
            student (built with `two_times: true`) jumps to the lower edge of each part, and is
            sampled in M steps.
        num_intervals: intervals N of discrete-time training (dsCD, and with `PairVelocity` dsCT): a
            difference over one interval stands for the derivative. None for continuous time.
        vsd: adaptive variational score distillation beside the consistency loss; needs a teacher.
        optimizer: makes the optimizer from parameter groups; the paper's on CIFAR-10 by default.
        lr_schedule: makes the learning-rate schedule, stepped with the optimizer; None for a
            constant rate.
        ema: profile of the averaged copy that is sampled from; or several profiles, of which the
            first is that one; see `GenerativeModule`.
        intermediate_times: angles of the second, third, ... sampling step. Radians.
        sampling_guidance: scale that student and teacher are sampled with, if there is guidance.
        num_teacher_steps: steps N of Heun's solver when the teacher is sampled for comparison,
            costing 2 N - 1 network calls.
        sweep: further samplers to compare in `scm test`.

    Raises:
        ValueError: if an option is unknown or out of range, or the teacher does not fit.

    Source: arXiv 2410.11081, Algorithm 1; defaults from its CIFAR-10 experiments.
    """

    module_kind = "consistency"

    def __init__(
        self,
        student: nn.Module,
        velocity: Velocity,
        teacher: str | nn.Module | None = None,
        start_from_teacher: bool = True,
        path: TrigFlow = TrigFlow(),
        times: TimeProposal = TimeProposal(P_mean=-1.0, P_std=1.4),
        tangents: TangentComputer = TangentComputer(),
        compile: bool = False,  # noqa: A002  Lightning's and torch's word for it
        tangent_bound: Literal["l2", "rms", "clip", "none"] = "l2",
        tangent_norm_constant: float = 0.1,
        tangent_warmup_steps: int = 10_000,
        weighting: Literal["learned", "none"] = "learned",
        prior: Literal["folded", "extra"] = "folded",
        weighting_lr: float | None = None,
        guidance: GuidanceProposal | None = None,
        num_segments: int = 1,
        num_intervals: int | None = None,
        vsd: AdaptiveVSD | None = None,
        optimizer: OptimizerFactory = lambda groups: RAdam(groups, lr=1e-4, betas=(0.9, 0.99)),
        lr_schedule: ScheduleFactory | None = None,
        ema: EMAProfile | list[EMAProfile] = HalfLife(),
        intermediate_times: Sequence[float] = (1.1,),
        sampling_guidance: float = 1.0,
        num_teacher_steps: int = 18,
        sweep: SamplerSweep | None = None,
    ) -> None:
        if num_segments > 1 and num_intervals is not None:
            raise ValueError(
                f"discrete time is for a whole path, got num_intervals {num_intervals} and "
                f"num_segments {num_segments}; set one of them"
            )
        teacher = prepare_teacher(teacher, student, path, start_from_teacher)
        segments, scale = Segments(num_segments), None if guidance is None else sampling_guidance
        whole = ConsistencySteps(path, intermediate_times, scale)
        parts = SegmentSteps(path, segments, scale)
        super().__init__(
            student,
            path,
            optimizer,
            lr_schedule,
            ema,
            teacher=teacher,
            num_teacher_steps=num_teacher_steps,
            sampling_guidance=scale,
            few_steps=whole if num_segments == 1 else parts,
            sweep=sweep,
        )
        self.student = student
        self.weighting_head = WeightingHead().requires_grad_(weighting == "learned")
        self.velocity_source = velocity
        self.times = times
        if compile:
            tangents = TangentComputer(tangents.method, tangents.check, compile=True)
        self.tangents = tangents
        self.tangent_bound = tangent_bound
        self.tangent_norm_constant = tangent_norm_constant
        self.tangent_warmup_steps = tangent_warmup_steps
        self.prior = prior
        self.guidance = guidance
        self.segments = segments
        self.grid = None if num_intervals is None else TimeGrid(num_intervals)
        self.vsd = vsd
        if vsd is not None:
            vsd.follow(student)
        self.weighting_lr = weighting_lr

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One batch through Algorithm 1.

        Returns:
            The loss; of every sample the time t, the loss and the norm of g before it is bounded,
            (B,) each.
        """
        x0, labels, _ = batch
        t = self.sample_times(len(x0))
        x_t, z = self.path.add_noise(x0, t)
        guidance = self.sample_guidance(len(x0))
        dx_dt = self.velocity(x_t, t, x0, z, labels, guidance)
        F, g = self.student_and_tangent(x_t, t, dx_dt, labels, guidance)
        log_weight = self.log_weight(t, num_elements=x0[0].numel())
        losses = consistency_loss(F, self.bound_tangent(g), log_weight)
        loss = losses.mean() + self.further_loss(x0, labels, guidance)
        self.log("train/loss", loss)
        of_samples = {"sample_loss": losses.detach(), "tangent_norm": tangent_norm(g)}
        return {"loss": loss, "t": t, **of_samples}

    def sample_times(self, num: int) -> Tensor:
        """Draw times to train at. (B,), radians."""
        t = self.times.sample(num, self.path, device=self.device)
        return t if self.grid is None else self.grid.interval(t, self.path)[1]

    def sample_guidance(self, num: int) -> Tensor | None:
        """Draw guidance scales. (B,), or None."""
        return None if self.guidance is None else self.guidance.sample(num, self.device)

    def velocity(
        self,
        x_t: Tensor,
        t: Tensor,
        x0: Tensor,
        z: Tensor,
        labels: Tensor | None,
        guidance: Tensor | None,
    ) -> Tensor:
        """Velocity dx_t/dt of the ODE, without gradient; see `Velocity`."""
        return self.velocity_source(
            x_t, t, x0, z, labels, guidance, path=self.path, teacher=self.teacher
        )

    def student_and_tangent(
        self,
        x_t: Tensor,
        t: Tensor,
        dx_dt: Tensor,
        labels: Tensor | None,
        guidance: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The student's output and the tangent g, before it is bounded.

        Args:
            x_t: noisy data. (B, ...), data units.
            t: times. (B,), radians.
            dx_dt: velocity of the ODE. (B, ...), data units per radian.
            labels: class labels. (B,) int64, or None.
            guidance: guidance scales. (B,), or None.

        Returns:
            F with its gradient, and g without one. (B, ...) each.
        """
        r = tangent_warmup(self.trainer.global_step, self.tangent_warmup_steps)
        if self.grid is not None:
            conditions = (labels, guidance)
            return discrete_step(self.student, self.grid, self.path, x_t, t, dx_dt, conditions, r)
        sigma_data = self.path.sigma_data
        s = self.segments.lower_edge(t)  # 0, unless the path is cut into parts
        angle = t - s
        F, cos_sin_dF_dt = self.tangents(
            Bound(self.student, labels, guidance),
            x_t,
            t,
            dx_dt,
            sigma_data=sigma_data,
            t_end=s if self.segments.num > 1 else None,
            scale=angle.cos() * angle.sin(),
        )
        g = tangent(F.detach(), cos_sin_dF_dt, x_t, dx_dt, angle, sigma_data=sigma_data, r=r)
        return F, g

    def bound_tangent(self, g: Tensor) -> Tensor:
        """Keep the tangent from dominating the step. (B, ...) to (B, ...)."""
        if self.tangent_bound == "clip":
            return clip_tangent(g)
        if self.tangent_bound == "none":
            return g
        return normalize_tangent(g, self.tangent_norm_constant, self.tangent_bound)

    def log_weight(self, t: Tensor, num_elements: int) -> Tensor:
        """Log weight w(t) of the loss.

        The head learns w beside its optimum for a unit tangent: log D with the L2 norm, 0 with the
        others, whose squared mean is of order one.

        Args:
            t: times. (B,), radians.
            num_elements: elements D of one sample.

        Returns:
            w(t). (B,).
        """
        log_weight: Tensor = self.weighting_head(t)
        if self.tangent_bound == "l2":
            log_weight = log_weight + math.log(num_elements)
        if self.prior == "extra":
            # In the loss's second term this only adds a constant, without gradient.
            log_weight = log_weight - (self.path.sigma_data * t.tan()).log()
        return log_weight

    def further_loss(
        self, x0: Tensor, labels: Tensor | None, guidance: Tensor | None
    ) -> Tensor | float:
        """What is added to the consistency loss: nothing, or VSD."""
        if self.vsd is None or self.teacher is None:
            return 0.0
        vsd, fake = self.vsd(self.student, self.teacher, self.path, x0, labels, guidance)
        self.log_dict({"train/vsd": vsd, "train/fake": fake})
        total: Tensor = self.vsd.weight * vsd + fake
        return total

    def setup(self, stage: str) -> None:
        """Refuse to distil without a teacher, or to guide without one.

        Raises:
            ValueError: if the velocity needs a teacher and there is none, or does not take guidance
                and there is some.
        """
        if stage == "fit":
            check_teacher(self.velocity_source if self.vsd is None else self.vsd, self.teacher)
        if self.guidance is not None and not self.velocity_source.needs_teacher:
            raise ValueError(
                f"guidance changes a teacher's velocity, but {type(self.velocity_source).__name__} "
                "has no teacher; set guidance to null, or velocity to TeacherVelocity"
            )

    def trained_network(self) -> nn.Module:
        """The student."""
        return self.student

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The student; the weighting head with its own learning rate; the parts of VSD."""
        head = parameter_group(self.weighting_head, self.weighting_lr)
        groups = [parameter_group(self.student), head]
        return groups if self.vsd is None else [*groups, parameter_group(self.vsd)]
