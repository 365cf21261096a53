# SPDX-License-Identifier: Apache-2.0
"""Training of a student: sCT and sCD, Algorithm 1 of the paper, and the other objectives.

The reading path starts at `training_step`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import RAdam

from scm_lightning.core import Bound, Conditions, GuidanceProposal, Guided, TrigFlow
from scm_lightning.data.batch import Batch, SampleRequest
from scm_lightning.modules.base import GenerativeModule
from scm_lightning.modules.ema import EMAProfile, HalfLife
from scm_lightning.modules.optimizing import OptimizerFactory, ScheduleFactory, parameter_group
from scm_lightning.modules.starting import (
    TEACHER,
    Init,
    begin,
    check_teacher,
    licence_of,
    open_teacher,
)
from scm_lightning.modules.step_output import StepOutput
from scm_lightning.networks.condition_names import ConditionNames, condition_names
from scm_lightning.networks.shapes import check_takes_end
from scm_lightning.objectives import (
    Consistency,
    Objective,
    PairVelocity,
    Point,
    Term,
    Velocity,
)
from scm_lightning.sampling import (
    Draw,
    FewStepSampling,
    Samples,
    SweepPoint,
    few_step_draw,
)
from scm_lightning.sampling.steps import Jumps
from scm_lightning.teachers import FrozenTeacher

DEFAULT_TIMES = FewStepSampling().intermediate_times


class ConsistencyModule(GenerativeModule):
    """A student of one or two steps, trained from data or from a teacher.

    To change a part, give another object: an `Objective` for the loss, a `Velocity` for where the
    ODE leads, a `Term` for a further loss; or override `velocity`, `sample_guidance`,
    `configure_optimizers` or `training_step`.

    Args:
        student: F(u, t, labels, guidance), the network that is trained; with t_end behind them for
            an objective of two times.
        velocity: `PairVelocity` makes it consistency training (sCT), `TeacherVelocity`
            consistency distillation (sCD).
        teacher: a checkpoint of a `DiffusionModule` run, whose averaged weights are loaded into a
            copy of the student; or any network F, those of `scm_lightning.teachers` among them; or
            None.
        objective: what the student is trained for; None for `Consistency()`, Algorithm 1.
        init: weights that the student begins with: "teacher" for the teacher's, as the paper's does
            in sCT and sCD; a checkpoint or export; a network; or None for random ones. Those that
            fit are copied, and the others named.
        path: owner of `sigma_data`.
        guidance: scales that the teacher is guided by while the student learns them as an input;
            the student is built with `guided: true`, the teacher trained with dropped labels. None
            for no guidance.
        terms: further losses, with networks of their own.
        sampling: how student and teacher are sampled.
        optimizer: makes the optimizer from parameter groups; the paper's on CIFAR-10 by default.
        lr_schedule: makes the learning-rate schedule, stepped with the optimizer; None for a
            constant rate.
        ema: profile of the averaged copy that is sampled from; or several profiles, of which the
            first is that one; see `GenerativeModule`.

    Raises:
        ValueError: if the teacher does not fit, or the student cannot be sampled as asked.

    Source: arXiv 2410.11081, Algorithm 1; defaults from its CIFAR-10 experiments.
    """

    moved: ClassVar[Mapping[str, str]] = {
        **GenerativeModule.moved,
        "sample_times": "sample_times of the objective",
        "student_and_tangent": "tangent of the objective",
        "bound_tangent": "the call of the objective's `bound`, a TangentBound",
        "log_weight": "log_weight of the objective",
        "further_loss": "loss of a Term, in `terms`",
        "swept_samplers": "swept_draws",
    }
    module_kind = "consistency"

    def __init__(
        self,
        student: nn.Module,
        velocity: Velocity = PairVelocity(),
        teacher: str | nn.Module | None = None,
        objective: Objective | None = None,
        init: Init = TEACHER,
        path: TrigFlow = TrigFlow(),
        guidance: GuidanceProposal | None = None,
        terms: Sequence[Term] = (),
        sampling: FewStepSampling = FewStepSampling(),
        optimizer: OptimizerFactory = lambda groups: RAdam(groups, lr=1e-4, betas=(0.9, 0.99)),
        lr_schedule: ScheduleFactory | None = None,
        ema: EMAProfile | list[EMAProfile] = HalfLife(),
    ) -> None:
        if not isinstance(objective, Objective | None):
            raise ValueError(
                f"objective must be an Objective, got {objective!r}; init comes after it"
            )
        if not isinstance(guidance, GuidanceProposal | None):
            raise ValueError(
                f"guidance must be the scales to train at, GuidanceProposal(low, high), got "
                f"{guidance!r}; one scale to sample at is guidance of sampling"
            )
        teacher = open_teacher(teacher, student, path)
        begun = begin(student, init, teacher, path)
        super().__init__(student, path, optimizer, lr_schedule, ema)
        self.licence = licence_of(teacher, begun)
        self.student = student
        self.objective = Consistency() if objective is None else objective
        self.velocity_source = velocity
        self.teacher = None if teacher is None else FrozenTeacher(teacher)
        self.guidance = guidance
        self.terms = nn.ModuleList(terms)
        for term in terms:
            term.follow(student)
        self.sampling = sampling
        self.draws(), self.reference_draws(), self.swept_draws()  # refuse what cannot be sampled

    def training_step(
        self, batch: Batch, batch_idx: int, times: tuple[Tensor, Tensor | None] | None = None
    ) -> StepOutput:
        """Compute the loss of one batch, by Algorithm 1 unless there is another objective.

        Args:
            batch: data.
            batch_idx: number of the batch.
            times: times to train at, (B,) each, in radians; None draws them.

        Returns:
            See `StepOutput`; `tangent_norm` is that of g before it is bounded.
        """
        x0, given = batch.x0, batch.given()
        if times is None:
            times = self.objective.sample_times(len(x0), self.path, self.device)
        t, t_end = times
        x_t, z = self.path.add_noise(x0, t)
        guidance = self.sample_guidance(len(x0))
        student, teacher = self.bound(given, guidance), self.guided(given, guidance)
        velocity = partial(self.velocity, x0=x0, z=z, teacher=teacher)
        at = Point(x_t, t, t_end, x0, z, velocity(x_t, t), velocity)
        found = self.objective.loss(student, at, self.path, self.steps_taken)
        further = [term.loss(student, teacher, self.path, x0) for term in self.further_losses()]
        loss = found.losses.mean() + sum(each.loss for each in further)
        logs = {"train/loss": loss, **found.logs}
        for each in further:
            logs |= each.logs
        return StepOutput(
            loss=loss,
            t=t,
            sample_loss=found.losses.detach(),
            tangent_norm=found.norm.detach(),
            logs={name: x.detach() for name, x in logs.items()},
        )

    def sample_guidance(self, num: int) -> Tensor | None:
        """Draw guidance scales. (B,), or None."""
        return None if self.guidance is None else self.guidance.sample(num, self.device)

    def bound(self, given: Conditions, guidance: Tensor | None) -> Bound:
        """The student with its conditions, as F(u, t)."""
        return Bound(self.student, given.labels, guidance, named=given.named)

    def guided(self, given: Conditions, guidance: Tensor | None) -> Guided | None:
        """The teacher with its conditions, as F(u, t); None if there is none."""
        return None if self.teacher is None else Guided(self.teacher, given, guidance)

    def velocity(
        self, x_t: Tensor, t: Tensor, x0: Tensor, z: Tensor, teacher: Guided | None
    ) -> Tensor:
        """Velocity dx_t/dt of the ODE, without gradient; see `Velocity`."""
        return self.velocity_source(x_t, t, x0, z, self.path, teacher)

    def times_at(self, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Times of a training step at chosen t; see `Objective`."""
        return self.objective.times_at(t, self.path)

    def setup(self, stage: str) -> None:
        """Tell the objective how long the run is; refuse parts that do not fit each other.

        Raises:
            ValueError: if a length is a share of a run without a number of steps, if a part needs a
                teacher and there is none, if there is guidance without one, if a term cannot train
                beside the objective, or if that hands the student a second time and it takes none.
        """
        if self.objective.two_times:
            check_takes_end(self.student, type(self.objective).__name__)
        if stage == "fit":
            self.objective.max_steps = self.max_steps
            self.objective.at_step(0)  # refuses a share of a run without a number of steps
            for part in (self.velocity_source, self.objective, *self.terms):
                check_teacher(part, self.teacher)
        if self.guidance is not None and not self.velocity_source.needs_teacher:
            raise ValueError(
                f"guidance changes a teacher's velocity, but {type(self.velocity_source).__name__} "
                "has no teacher; set guidance to null, or velocity to TeacherVelocity"
            )
        for term in self.further_losses():
            if self.objective.two_times and not term.takes_two_times:
                raise ValueError(
                    f"{type(term).__name__} calls the student as F(u, t), but that of "
                    f"{type(self.objective).__name__} is told where its step ends; remove the "
                    "term, or take the objective Consistency"
                )

    def at_step(self, step: int) -> dict[str, float]:
        """The objective's; see `Objective`."""
        return self.objective.at_step(step)

    def parts_of_run(self) -> dict[str, str]:
        """The objective: a run does not change it."""
        return {"objective": type(self.objective).__name__}

    def trained_network(self) -> nn.Module:
        """The student."""
        return self.student

    def taken_conditions(self) -> list[ConditionNames]:
        """Names of the conditions that student and teacher take."""
        of_teacher = [] if self.teacher is None else [condition_names(self.teacher.network)]
        return [condition_names(self.student, self.objective.two_times), *of_teacher]

    def named_conditions(self) -> dict[str, Collection[str]]:
        """Conditions that the teacher is guided towards, each apart."""
        scales = self.sampling.teacher.guidance
        return {"sampling.teacher.guidance": scales} if isinstance(scales, Mapping) else {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The student; what the objective trains beside it; the terms."""
        of_terms = [parameter_group(term) for term in self.terms]
        return [parameter_group(self.student), *self.objective.parameter_groups(), *of_terms]

    def further_losses(self) -> list[Term]:
        """The terms."""
        return [term for term in self.terms if isinstance(term, Term)]

    def draws(self) -> dict[str, Draw]:
        """The run's own numbers of steps."""
        given, intermediate = self.sampling.num_steps, self.sampling.intermediate_times
        if isinstance(self.objective.steps, Jumps) and [*intermediate] != [*DEFAULT_TIMES]:
            raise ValueError(
                f"{type(self.objective).__name__} has no intermediate_times of its own choice, got "
                f"{list(intermediate)}; take them out, and set num_steps"
            )
        numbers = self.objective.steps.own_numbers(given, intermediate)
        points = [SweepPoint(number) for number in numbers]
        return {point.name(): self.draw_at(point) for point in points}

    def draw_at(self, point: SweepPoint) -> Draw:
        """The way to sample that a point of a sweep stands for.

        Raises:
            ValueError: if the student cannot be sampled so.
        """
        scales = self.sampling.scales
        scale = point.guidance
        if self.guidance is not None and scale is None:
            scale = scales[min(point.num_steps, len(scales)) - 1]
        elif self.guidance is None and (scale is not None or {*scales} != {1.0}):
            where = "sampling" if scale is None else "a sweep"
            raise ValueError(
                f"guidance of {where} needs a guided network, got "
                f"{self.sampling.guidance if scale is None else scale} for a model without "
                "guidance; leave it out, or set guidance of the model when it is trained"
            )
        steps, network = self.objective.steps, self.averages()[point.average].network
        intermediate = self.sampling.intermediate_times
        times = steps.times(point.num_steps, point.t_mid, intermediate, self.path)
        return few_step_draw(network, steps, times, self.path, scale)

    def sweep_points(self) -> dict[str, SweepPoint]:
        """The sweep's points, by name; none without a sweep."""
        if self.sampling.sweep is None:
            return {}
        names = [average.profile.short_name for average in self.averages()]
        return self.sampling.sweep.points(names)

    def swept_draws(self) -> dict[str, Draw]:
        """The sweep's ways to sample, by the names of their points.

        Raises:
            ValueError: if the student cannot be sampled so.
        """
        return {name: self.draw_at(point) for name, point in self.sweep_points().items()}

    def reference_draws(self) -> dict[str, Draw]:
        """The teacher's solver, and its own single step."""
        if self.teacher is None:
            return {}
        sampling = self.sampling.teacher
        if self.guidance is not None and sampling.guidance is None:
            sampling = replace(sampling, guidance=self.sampling.scales[-1])
        return sampling.draws(self.teacher, self.path)

    def test_step(self, request: SampleRequest, batch_idx: int) -> dict[str, Samples]:
        """Draw the requested samples in all ways, those of the sweep last."""
        return self.draw(request, self.reference_draws() | self.draws() | self.swept_draws())
