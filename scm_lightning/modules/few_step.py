# SPDX-License-Identifier: Apache-2.0
"""What the few-step models have in common: a teacher to be compared with, a sweep of samplers."""

import json
import shlex
from abc import ABC
from collections.abc import Sequence

from torch import nn

from scm_lightning.core import TrigFlow
from scm_lightning.data.batch import SampleRequest
from scm_lightning.modules.base import GenerativeModule, OptimizerFactory, ScheduleFactory
from scm_lightning.modules.ema import EMAProfile
from scm_lightning.sampling import (
    FewSteps,
    Sampler,
    SamplerSweep,
    Samples,
    SweepPoint,
    teacher_samplers,
)
from scm_lightning.teachers import FrozenTeacher


class FewStepModule(GenerativeModule, ABC):
    """A model that is sampled in a few steps.

    Args:
        network: see `GenerativeModule`, as path, optimizer, lr_schedule and ema.
        teacher: F of a diffusion model, or None.
        num_teacher_steps: steps N of Heun's solver when the teacher is sampled for comparison.
        sampling_guidance: scale that the teacher is sampled with; None for no guidance, of the
            model either.
        few_steps: how the model is sampled.
        sweep: further samplers to compare in `scm test`.

    Raises:
        ValueError: if the model cannot be sampled as the options say.
    """

    def __init__(
        self,
        network: nn.Module,
        path: TrigFlow,
        optimizer: OptimizerFactory,
        lr_schedule: ScheduleFactory | None,
        ema: EMAProfile | Sequence[EMAProfile],
        *,
        teacher: nn.Module | None,
        num_teacher_steps: int,
        sampling_guidance: float | None,
        few_steps: FewSteps,
        sweep: SamplerSweep | None,
    ) -> None:
        super().__init__(network, path, optimizer, lr_schedule, ema)
        self.teacher = None if teacher is None else FrozenTeacher(teacher)
        self.num_teacher_steps = num_teacher_steps
        self.sampling_guidance = sampling_guidance
        self.few_steps = few_steps
        self.sweep = sweep
        # Refuse what cannot be sampled.
        self.samplers(), self.reference_samplers(), self.swept_samplers()

    def samplers(self) -> dict[str, Sampler]:
        """The run's own numbers of steps."""
        return self.few_steps.samplers(self.ema.network)

    def sweep_points(self) -> dict[str, SweepPoint]:
        """The sweep's points, by name; none without a sweep."""
        if self.sweep is None:
            return {}
        return self.sweep.points([average.profile.short_name for average in self.averages()])

    def sweep_options(self, point: SweepPoint) -> str:
        """What to type to sample as a point does.

        Another average than the first is reached by a sweep of one point, in `scm test`.
        """
        options = self.few_steps.options_at(point)
        if point.average:
            values = {"t_mid": point.t_mid, "guidance": point.guidance, "ema": point.average}
            options = {"sweep.num_steps": [point.num_steps]}
            options |= {f"sweep.{k}": [] if v is None else [v] for k, v in values.items()}
        words = {key: json.dumps(value, separators=(",", ":")) for key, value in options.items()}
        return shlex.join(f"--model.init_args.{key}={value}" for key, value in words.items())

    def swept_samplers(self) -> dict[str, Sampler]:
        """The sweep's samplers, by the names of their points.

        Raises:
            ValueError: if the model cannot be sampled so.
        """
        points, averages = self.sweep_points(), self.averages()
        if self.sweep is not None and self.sweep.guidance and self.sampling_guidance is None:
            raise ValueError(
                f"guidance of a sweep needs a guided network, got {list(self.sweep.guidance)} for "
                "a model without guidance; leave it out, or set guidance of the model when it is "
                "trained"
            )
        return {
            name: self.few_steps.sampler_at(averages[point.average].network, point)
            for name, point in points.items()
        }

    def test_step(self, request: SampleRequest, batch_idx: int) -> dict[str, Samples]:
        """Draw the requested samples with all samplers, those of the sweep last."""
        samplers = self.reference_samplers() | self.samplers() | self.swept_samplers()
        return self.draw(request, samplers)

    def reference_samplers(self) -> dict[str, Sampler]:
        """The teacher's solver, and its own single step."""
        if self.teacher is None:
            return {}
        steps, scale = self.num_teacher_steps, self.sampling_guidance
        return teacher_samplers(self.teacher, self.path, steps, scale)
