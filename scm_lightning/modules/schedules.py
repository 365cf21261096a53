# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules, as factors of every group's own rate.

Steps are lengths: a number of optimizer steps, a share of `trainer.max_steps`, or None for the
whole run; see `core/lengths.py`.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from scm_lightning.core import Length, check_length, steps_of


class FlatCosine(LambdaLR):
    """Linear ramp-up, a flat stretch, then a cosine down to a small share (ours: for short runs).

    Args:
        optimizer: the optimizer to steer.
        total_steps: length of the schedule; by default the whole run.
        ramp_steps: length of the ramp-up.
        flat_share: share of `total_steps` after which the rate starts to fall, in [0, 1).
        last_factor: factor at the end of `total_steps`, and after it.

    Raises:
        ValueError: if the shares or steps are out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: Length = None,
        ramp_steps: Length = 0,
        flat_share: float = 0.4,
        last_factor: float = 0.02,
    ) -> None:
        check_length(total_steps, "total_steps", least=1)
        check_length(ramp_steps, "ramp_steps")
        total, ramp_up = steps_of(total_steps, "total_steps"), steps_of(ramp_steps, "ramp_steps")
        is_cut_short = total_steps is None and ramp_up > total  # of a trial: not refused
        if not ((ramp_up <= total or is_cut_short) and 0.0 <= flat_share < 1.0):
            raise ValueError(
                f"need ramp_steps <= total_steps and 0 <= flat_share < 1, got ramp_steps "
                f"{ramp_up}, total_steps {total}, flat_share {flat_share}"
            )

        def factor(step: int) -> float:
            ramp = min(1.0, (step + 1) / ramp_up) if ramp_up else 1.0
            fall = (step / total - flat_share) / (1.0 - flat_share)
            fall = min(max(fall, 0.0), 1.0)
            cosine = 0.5 * (1.0 + math.cos(math.pi * fall))
            return ramp * (last_factor + (1.0 - last_factor) * cosine)

        super().__init__(optimizer, factor)


class InverseSqrt(LambdaLR):
    """Linear ramp-up, a flat stretch, then a fall with the inverse square root of the step.

    The paper's on ImageNet: alpha_ref / sqrt(max(step / t_ref, 1)), alpha_ref being the optimizer's
    own rate.

    Args:
        optimizer: the optimizer to steer.
        ref_steps: length t_ref after which the rate falls.
        ramp_steps: length of the ramp-up; EDM2 takes 10 million images.

    Raises:
        ValueError: if the steps are out of range.

    Source: arXiv 2410.11081, Tables 4 and 5; ramp-up: EDM2, arXiv 2312.02696.
    """

    def __init__(self, optimizer: Optimizer, ref_steps: Length, ramp_steps: Length = 0) -> None:
        check_length(ref_steps, "ref_steps", least=1)
        check_length(ramp_steps, "ramp_steps")
        ref, ramp_up = steps_of(ref_steps, "ref_steps"), steps_of(ramp_steps, "ramp_steps")

        def factor(step: int) -> float:
            ramp = min(1.0, (step + 1) / ramp_up) if ramp_up else 1.0
            return float(ramp / max(step / ref, 1.0) ** 0.5)

        super().__init__(optimizer, factor)
