# SPDX-License-Identifier: Apache-2.0
"""Sampling of few-step models: its times, and what happens between them.

A consistency model takes in noise at every step, at times of its choice; a model of segments and
MeanFlow jump from time to time without fresh noise.
Axes: B batch, ... data axes. Times in radians.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from scm_lightning.core import AVERAGE_VELOCITY, TRIGONOMETRIC, FlowMap, Segments, TrigFlow
from scm_lightning.core.noise import Generators
from scm_lightning.sampling.consistency import sample_consistency
from scm_lightning.sampling.flow_map import sample_flow_map
from scm_lightning.sampling.times import check_times

Network = Callable[..., Tensor]
"""F(u, t), and F(u, t, t_end) of a flow map."""


class Steps(ABC):
    """One way to sample a student."""

    @abstractmethod
    def own_numbers(self, given: Sequence[int] | None, intermediate: Sequence[float]) -> list[int]:
        """Numbers of steps that a run samples in.

        Args:
            given: the numbers that were asked for, or None.
            intermediate: the run's own times after the first. Radians.
        """

    @abstractmethod
    def times(
        self, num_steps: int, t_mid: float | None, intermediate: Sequence[float], path: TrigFlow
    ) -> list[float]:
        """Times of a number of steps.

        Args:
            num_steps: number of steps.
            t_mid: time of the last of them, or None for the run's own times. Radians.
            intermediate: the run's own times after the first. Radians.
            path: owner of `sigma_data`.

        Raises:
            ValueError: if the student cannot be sampled this way.
        """

    @abstractmethod
    def sample(
        self,
        F: Network,
        noise: Tensor,
        times: Sequence[float],
        path: TrigFlow,
        generator: Generators = None,
    ) -> Tensor:
        """Draw samples.

        Args:
            F: the student, its conditions bound.
            noise: start at `times[0]`. (B, ...), data units: standard deviation `sigma_data`.
            times: as `times` gives them. Radians.
            path: owner of `sigma_data`.
            generator: source of fresh noise; see `standard_normal`.

        Returns:
            Samples. (B, ...), data units.
        """


@dataclass(frozen=True)
class FreshNoise(Steps):
    r"""Steps to the data and, with fresh noise, back to an earlier time; see `sample_consistency`.

        t_k = t_max + k / (n - 1) (t_mid - t_max),    k = 0 .. n - 1    times of n steps to t_mid

    Args:
        tells_end: whether the network is told that every step leads to 0.

    Source: (t_max, t_mid) with t_mid = 1.1: arXiv 2410.11081, Section 4. Evenly spaced angles for
        more steps (ours): rCM's four, atan sigma_max, 1.3, 1.0 and 0.6, are nearly that.
    """

    tells_end: bool = False

    def own_numbers(self, given: Sequence[int] | None, intermediate: Sequence[float]) -> list[int]:
        """The given numbers, or one step and one more for every intermediate time."""
        return list(given or range(1, len(intermediate) + 2))

    def times(
        self, num_steps: int, t_mid: float | None, intermediate: Sequence[float], path: TrigFlow
    ) -> list[float]:
        """t_max, then the run's own, or evenly spaced ones down to t_mid."""
        start = path.t_max()
        if t_mid is not None:
            shares = [k / (num_steps - 1) for k in range(num_steps)]
            times = [(1 - share) * start + share * t_mid for share in shares]
        else:
            times = [start, *intermediate][:num_steps]
        if len(times) < num_steps:
            raise ValueError(
                f"{num_steps} steps need {num_steps - 1} intermediate_times, got "
                f"{list(intermediate)}; set t_mid of the sweep, or more times"
            )
        if any(start <= time <= math.pi / 2 for time in times[1:]):
            raise ValueError(
                f"sampling starts at t_max = atan(80 / sigma_data), {start:.3g} at sigma_data "
                f"{path.sigma_data:g}, and later times must be below it, got {times[1:]}; "
                "sigma_data is the standard deviation of the data, mostly about 0.5"
            )
        check_times(times, last=1e-6)
        return times

    def sample(
        self,
        F: Network,
        noise: Tensor,
        times: Sequence[float],
        path: TrigFlow,
        generator: Generators = None,
    ) -> Tensor:
        """See `sample_consistency`."""
        to_data = (lambda u, t: F(u, t, torch.zeros_like(t))) if self.tells_end else F
        return sample_consistency(to_data, noise, times, path=path, generator=generator)


class Jumps(Steps, ABC):
    """Jumps from time to time by a flow map, without fresh noise; see `sample_flow_map`.

    Args:
        flow_map: what F means.
    """

    def __init__(self, flow_map: FlowMap) -> None:
        self.flow_map = flow_map

    def sample(
        self,
        F: Network,
        noise: Tensor,
        times: Sequence[float],
        path: TrigFlow,
        generator: Generators = None,
    ) -> Tensor:
        """See `sample_flow_map`; nothing is drawn."""
        jump = partial(self.flow_map.jump, sigma_data=path.sigma_data)
        return sample_flow_map(F, noise, times, step=jump, path=path)


class SegmentJumps(Jumps):
    """One step through each segment.

    Args:
        segments: the segments.
    """

    def __init__(self, segments: Segments) -> None:
        super().__init__(TRIGONOMETRIC)
        self.segments = segments

    def own_numbers(self, given: Sequence[int] | None, intermediate: Sequence[float]) -> list[int]:
        """The given numbers, or as many steps as there are segments."""
        return list(given or [self.segments.num])

    def times(
        self, num_steps: int, t_mid: float | None, intermediate: Sequence[float], path: TrigFlow
    ) -> list[float]:
        """t_max, then the edges."""
        if num_steps != self.segments.num or t_mid is not None:
            raise ValueError(
                f"a model of {self.segments.num} segments is sampled at their edges, got num_steps "
                f"{num_steps} and t_mid {t_mid}; set num_steps to [{self.segments.num}], and no "
                "t_mid"
            )
        return list(self.segments.edges(path.t_max()))


class EqualJumps(Jumps):
    """Equal steps from t_max to 0, of average velocities.

    One and two of them, where no other numbers are asked for.
    """

    def __init__(self) -> None:
        super().__init__(AVERAGE_VELOCITY)

    def own_numbers(self, given: Sequence[int] | None, intermediate: Sequence[float]) -> list[int]:
        """The given numbers, or one and two steps."""
        return list(given or [1, 2])

    def times(
        self, num_steps: int, t_mid: float | None, intermediate: Sequence[float], path: TrigFlow
    ) -> list[float]:
        """Equal steps."""
        if t_mid is not None:
            raise ValueError(
                f"MeanFlow goes to 0 in equal steps, got t_mid {t_mid}; sweep only num_steps"
            )
        start = path.t_max()
        return [start * (num_steps - index) / num_steps for index in range(num_steps + 1)]
