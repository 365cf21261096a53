# SPDX-License-Identifier: Apache-2.0
"""How models of a few steps are sampled: the run's own samplers, and those of a sweep.

A consistency model takes noise in at every step, at times of its choice; a model of segments and
MeanFlow jump from time to time without fresh noise.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scm_lightning.core import Segments, TrigFlow, flow_step
from scm_lightning.sampling.samplers import (
    Network,
    Sampler,
    consistency_sampler,
    consistency_samplers,
    flow_map_sampler,
)
from scm_lightning.sampling.sweep import SweepPoint


class FewSteps(ABC):
    """One kind of model: its samplers."""

    @abstractmethod
    def samplers(self, network: Network) -> dict[str, Sampler]:
        """The run's own samplers of a network, by name."""

    @abstractmethod
    def sampler_at(self, network: Network, point: SweepPoint) -> Sampler:
        """The sampler that a point of a sweep stands for.

        Raises:
            ValueError: if the model cannot be sampled so.
        """

    @abstractmethod
    def options_at(self, point: SweepPoint) -> dict[str, Any]:
        """Options of the module that make the point one of the run's own samplers."""


@dataclass(frozen=True)
class ConsistencySteps(FewSteps):
    """A consistency model; see `sample_consistency`.

    Args:
        path: owner of `sigma_data`.
        intermediate_times: angles of the second, third, ... step. Radians.
        guidance: guidance scale that the network is given; None for a network without.
    """

    path: TrigFlow
    intermediate_times: Sequence[float]
    guidance: float | None = None

    def samplers(self, network: Network) -> dict[str, Sampler]:
        """One, two, ... steps."""
        return consistency_samplers(network, self.path, self.intermediate_times, self.guidance)

    def sampler_at(self, network: Network, point: SweepPoint) -> Sampler:
        """The steps at the point's times."""
        scale = self.guidance if point.guidance is None else point.guidance
        times = point.times(self.path, self.intermediate_times)
        return consistency_sampler(network, self.path, times, scale)

    def options_at(self, point: SweepPoint) -> dict[str, Any]:
        """Times, and the guidance if the point sets it."""
        times = point.times(self.path, self.intermediate_times)[1:]
        options = {"intermediate_times": [float(f"{time:.6g}") for time in times]}
        guided = {} if point.guidance is None else {"sampling_guidance": point.guidance}
        return options | guided


@dataclass(frozen=True)
class SegmentSteps(FewSteps):
    """A consistency model of segments, one step through each; see `sample_flow_map`.

    Args:
        path: owner of `sigma_data`.
        segments: the segments.
        guidance: guidance scale that the network is given; None for a network without.
    """

    path: TrigFlow
    segments: Segments
    guidance: float | None = None

    def samplers(self, network: Network) -> dict[str, Sampler]:
        """As many steps as there are segments."""
        own = SweepPoint(self.segments.num)
        return {own.name(): self.sampler_at(network, own)}

    def sampler_at(self, network: Network, point: SweepPoint) -> Sampler:
        """The same steps, with the point's guidance."""
        if point.num_steps != self.segments.num or point.t_mid is not None:
            raise ValueError(
                f"a model of {self.segments.num} segments is sampled at their edges, got the point "
                f"{point.name()} of a sweep; set num_steps to [{self.segments.num}], and no t_mid"
            )
        scale = self.guidance if point.guidance is None else point.guidance
        times = self.segments.edges(self.path.t_max())
        return flow_map_sampler(network, self.path, times, self.path.jump, scale)

    def options_at(self, point: SweepPoint) -> dict[str, Any]:
        """The guidance, if the point sets it."""
        return {} if point.guidance is None else {"sampling_guidance": point.guidance}


@dataclass(frozen=True)
class MeanFlowSteps(FewSteps):
    """A MeanFlow model; see `sample_flow_map`.

    Args:
        path: owner of `sigma_data`.
        sampling_steps: numbers of equal steps from t_max to 0.
    """

    path: TrigFlow
    sampling_steps: Sequence[int]

    def samplers(self, network: Network) -> dict[str, Sampler]:
        """Each number of steps."""
        own = [SweepPoint(num) for num in self.sampling_steps]
        return {point.name(): self.sampler_at(network, point) for point in own}

    def sampler_at(self, network: Network, point: SweepPoint) -> Sampler:
        """The point's number of steps."""
        if point.t_mid is not None or point.guidance is not None:
            raise ValueError(
                f"MeanFlow goes to 0 in equal steps, without guidance, got the point "
                f"{point.name()} of a sweep; sweep num_steps and ema alone"
            )
        start, num = self.path.t_max(), point.num_steps
        times = [start * (num - index) / num for index in range(num + 1)]
        return flow_map_sampler(network, self.path, times, self._step)

    def options_at(self, point: SweepPoint) -> dict[str, Any]:
        """The number of steps."""
        return {"sampling_steps": [point.num_steps]}

    def _step(self, F: Tensor, x_t: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
        return flow_step(F, x_t, t, t_end, sigma_data=self.path.sigma_data)
