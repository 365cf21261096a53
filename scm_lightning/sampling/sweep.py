# SPDX-License-Identifier: Apache-2.0
r"""A sweep over the ways to sample a few-step model: step counts, times, guidance scales, averages.

Every combination is a point, and a point has a name, `2_step t_mid=0.8 guidance=1.5 ema=0.05`, in
which a dimension stands if and only if the sweep sets it: a further value renames no point.
One step has no t_mid, and is there once.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scm_lightning.core import check_num_steps


class SweepPoint(NamedTuple):
    """One way to sample.

    Attributes:
        num_steps: number of steps n.
        t_mid: time of the last step, in radians; None for one step, and for the run's own times.
        guidance: guidance scale; None for the run's own.
        ema: name of the average that is sampled from; None for the run's own.
        average: number of that average among those of the run.
    """

    num_steps: int
    t_mid: float | None = None
    guidance: float | None = None
    ema: str | None = None
    average: int = 0

    def words(self) -> dict[str, str]:
        """The name's words, by dimension."""
        values = {"t_mid": self.t_mid, "guidance": self.guidance}
        words = {"num_steps": f"{self.num_steps}_step"}
        words |= {key: f"{key}={value:g}" for key, value in values.items() if value is not None}
        return words if self.ema is None else {**words, "ema": f"ema={self.ema}"}

    def name(self) -> str:
        """For example `2_step t_mid=0.8 guidance=1.5 ema=0.05`."""
        return " ".join(self.words().values())


@dataclass(frozen=True)
class SamplerSweep:
    """Samplers of `scm test` beside the run's own: every combination of these options.

    Args:
        num_steps: numbers of steps.
        t_mid: times of the last of two or more steps, in radians; none for the run's own times.
        guidance: scales that a guided student is given; none for the run's own.
        ema: numbers of the averages to sample from, in the order of the module's `ema`, the first
            being 0; or "all"; none for the first.

    Raises:
        ValueError: if a list repeats itself or has a value out of range, or there is no step.
    """

    num_steps: Sequence[int] = (1, 2)
    t_mid: Sequence[float] = ()
    guidance: Sequence[float] = ()
    ema: Literal["all"] | Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("num_steps", "t_mid", "guidance", "ema"):
            values = getattr(self, name)
            if values != "all" and not _distinct(values):
                raise ValueError(
                    f"{name} of a sweep must be finite numbers that differ in their first six "
                    f"digits, got {list(values)}; give each once"
                )
        if min(self.num_steps, default=0) < 1:
            raise ValueError(
                f"num_steps of a sweep must be at least 1, got {list(self.num_steps)}; the paper "
                "takes 1 and 2"
            )
        check_num_steps(max(self.num_steps))
        if not self.t_mid:
            return
        if max(self.num_steps) < 2 or not all(0.0 < t < math.pi / 2 for t in self.t_mid):
            raise ValueError(
                f"t_mid of a sweep is the angle in (0, pi/2) of the last of two or more steps, got "
                f"t_mid {list(self.t_mid)} and num_steps {list(self.num_steps)}; the paper takes "
                "1.1 and 2"
            )

    def points(self, averages: Sequence[str]) -> dict[str, SweepPoint]:
        """Every combination, by its name.

        Args:
            averages: names of the run's averages, the one that it samples from first.

        Raises:
            ValueError: if an average does not exist, or two have the same name.
        """
        numbers = range(len(averages)) if self.ema == "all" else self.ema
        if not set(numbers) <= set(range(len(averages))) or not _distinct(averages):
            raise ValueError(
                f"ema of a sweep counts the run's averages from 0, each of another name, got "
                f"{list(numbers)} of {', '.join(averages)}; set more profiles as `ema` of the "
                "model when it is trained"
            )
        found = {}
        for n, t_mid, guidance, number in itertools.product(
            self.num_steps, self.t_mid or (None,), self.guidance or (None,), numbers or (0,)
        ):
            ema = averages[number] if self.ema else None
            point = SweepPoint(n, None if n == 1 else t_mid, guidance, ema, number)
            found[point.name()] = point
        return found


def _distinct(values: Iterable[float | str]) -> bool:
    """Tell whether values are finite, and differ in their words."""
    values = list(values)
    numbers = [value for value in values if not isinstance(value, str)]
    words = {value if isinstance(value, str) else f"{value:g}" for value in values}
    return len(words) == len(values) and all(map(math.isfinite, numbers))
