# SPDX-License-Identifier: Apache-2.0
"""Everything that is needed to sample a network, beside its weights; as entries of an export.

    scm_network     class and arguments of the network
    scm_sampling    steps and their times of a student, or the solver of a diffusion model; guidance
    scm_data        shape, mean and std, class names, conditions, autoencoder: an index, no shards
    scm_training    steps, images, objective, teacher, data
    scm_scores      content of the run's metrics.json
    scm_licence     licence of the weights

All but the licence are JSON; what is not known is left out.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from scm_lightning.core import Segments, TrigFlow
from scm_lightning.data.index import ShardIndex, Split
from scm_lightning.sampling import Churn, DiffusionSampling, FreshNoise, Steps
from scm_lightning.sampling.steps import EqualJumps, SegmentJumps
from scm_lightning.storage import Export

MOST_STEPS = 8
"""Numbers of steps whose times an export lists, for other programs."""


@dataclass(frozen=True)
class StudentSampling:
    """Ways to sample a student.

    Args:
        steps: what happens between the times.
        num_steps: numbers of steps that it was made for.
        intermediate_times: angles of the second, third, ... step with fresh noise. Radians.
        scales: guidance scale of one step, of two, ...; the last of more too. None for a network
            that takes none.
        guidance_range: smallest and largest scale that it was trained at; None for none.
    """

    steps: Steps
    num_steps: tuple[int, ...] = (1, 2)
    intermediate_times: tuple[float, ...] = ()
    scales: tuple[float, ...] | None = None
    guidance_range: tuple[float, float] | None = None

    def times(self, num_steps: int, path: TrigFlow) -> list[float]:
        """Times of a number of steps, from t_max. Radians.

        Args:
            num_steps: number of steps.
            path: owner of `sigma_data`.

        Raises:
            ValueError: if it has no times for so many.
        """
        known = self._numbers()
        if known is not None and num_steps not in known:
            listed = " or ".join(filter(None, [", ".join(map(str, known[:-1])), str(known[-1])]))
            raise ValueError(
                f"steps must be {listed}, the numbers that this network has times for, got "
                f"{num_steps}; give one of these"
            )
        return self.steps.times(num_steps, None, self.intermediate_times, path)

    def scale(self, num_steps: int) -> float | None:
        """Guidance scale that a number of steps has by default."""
        return None if self.scales is None else self.scales[min(num_steps, len(self.scales)) - 1]

    def fields(self, path: TrigFlow) -> dict[str, Any]:
        """Fields of JSON that say all of it.

        Args:
            path: owner of `sigma_data`.
        """
        return {
            **_fields_of_steps(self.steps),
            "t_max": path.t_max(),
            "times": {
                str(number): self.times(number, path)
                for number in self._numbers() or range(1, MOST_STEPS + 1)
            },
            "num_steps": self.num_steps,
            "intermediate_times": self.intermediate_times,
            "guidance": self.scales,
            "guidance_range": self.guidance_range,
        }

    @staticmethod
    def read(found: Mapping[str, Any]) -> "StudentSampling":
        """Read what `fields` wrote.

        Raises:
            KeyError, TypeError, ValueError: if it is not that.
        """
        kind = found["kind"]
        if kind == "fresh_noise":
            steps: Steps = FreshNoise(tells_end=found["tells_end"] is True)
        elif kind == "segments":
            steps = SegmentJumps(Segments(_whole(found["num_segments"])))
        elif kind == "equal_jumps":
            steps = EqualJumps()
        else:
            raise ValueError(f"steps of the kind {kind!r:.40} are not known")
        scales, between = found["guidance"], found["guidance_range"]
        low, high = between if between is not None else (1.0, 1.0)
        if not found["num_steps"] or (scales is not None and not scales):
            raise ValueError("it names no number of steps, or no scale of guidance")
        return StudentSampling(
            steps,
            tuple(map(_whole, found["num_steps"])),
            tuple(map(_finite, found["intermediate_times"])),
            None if scales is None else tuple(map(_finite, scales)),
            None if between is None else (_finite(low), _finite(high)),
        )

    def _numbers(self) -> list[int] | None:
        """Numbers of steps that there are times for; None for any."""
        if isinstance(self.steps, SegmentJumps):
            return [self.steps.segments.num]
        if isinstance(self.steps, FreshNoise):
            return [*range(1, len(self.intermediate_times) + 2)]
        return None


@dataclass(frozen=True)
class SamplingFacts:
    """All that is known of a network, beside its weights.

    Args:
        kind: kind of the run: diffusion or consistency.
        sigma_data: standard deviation of the data. Data units.
        network: `class_path` and `init_args`; None if not known.
        sampling: how it is sampled; None if not known.
        data: index of the data without its shards, as they are handed to the network; None if not
            known.
        training: facts of its training, by name: step, images, objective, teacher, ...
        scores: content of the run's metrics.json.
        licence: licence of the weights; None if not known.
    """

    kind: str
    sigma_data: float
    network: Mapping[str, Any] | None = None
    sampling: StudentSampling | DiffusionSampling | None = None
    data: ShardIndex | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None

    @property
    def path(self) -> TrigFlow:
        """Owner of `sigma_data`."""
        return TrigFlow(self.sigma_data)

    def entries(self) -> dict[str, str]:
        """Entries of an export; what is not known is left out."""
        sampling: Any = self.sampling
        if isinstance(sampling, StudentSampling):
            sampling = sampling.fields(self.path)
        elif sampling is not None:
            sampling = {"kind": "solver", **asdict(sampling)}
        data = None if self.data is None else asdict(without_shards(self.data))
        known = {
            "network": self.network,
            "sampling": sampling,
            "data": data,
            "training": self.training,
            "scores": self.scores,
        }
        entries = {name: json.dumps(each, sort_keys=True) for name, each in known.items() if each}
        return entries if self.licence is None else {**entries, "licence": self.licence}

    @staticmethod
    def of(export: Export) -> "SamplingFacts":
        """Read the entries of an export, which is not trusted.

        Args:
            export: the export.

        Raises:
            ValueError: if they are not what `entries` writes.
        """
        try:
            entries = {
                name: value if name == "licence" else json.loads(value)
                for name, value in export.entries.items()
            }
            _check_texts(entries)
            if not 0 < export.sigma_data < math.inf:
                raise ValueError(f"sigma_data is {export.sigma_data}")
            return SamplingFacts(
                export.module,
                export.sigma_data,
                _map(entries.get("network")),
                _sampling_of(_map(entries.get("sampling"))),
                _index_of(_map(entries.get("data"))),
                _map(entries.get("training")) or {},
                _map(entries.get("scores")) or {},
                entries.get("licence"),
            )
        except (
            *(ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError),
        ) as error:
            raise ValueError(
                f"its entries are not those of an export: {type(error).__name__}, {error!s:.80}; "
                "export it again"
            ) from error


def without_shards(index: ShardIndex) -> ShardIndex:
    """An index that says everything of its data but where they lie: it may be published."""
    source = Path(index.source)
    named = source.name if source.is_absolute() else index.source
    return replace(index, source=named, splits={"train": Split([]), "heldout": Split([])})


def _fields_of_steps(steps: Steps) -> dict[str, Any]:
    if isinstance(steps, SegmentJumps):
        return {"kind": "segments", "num_segments": steps.segments.num}
    if isinstance(steps, EqualJumps):
        return {"kind": "equal_jumps"}
    return {"kind": "fresh_noise", "tells_end": isinstance(steps, FreshNoise) and steps.tells_end}


def _sampling_of(found: Mapping[str, Any] | None) -> StudentSampling | DiffusionSampling | None:
    if found is None or found["kind"] != "solver":
        return None if found is None else StudentSampling.read(found)
    churn, guidance = found["churn"], found["guidance"]
    if isinstance(guidance, dict):
        guidance = {name: _finite(scale) for name, scale in guidance.items()}
    elif guidance is not None:
        guidance = _finite(guidance)
    return DiffusionSampling(
        _whole(found["num_steps"]),
        found["solver"],
        None if churn is None else Churn(**{name: float(each) for name, each in churn.items()}),
        guidance,
    )


def _index_of(found: Mapping[str, Any] | None) -> ShardIndex | None:
    return None if found is None else ShardIndex.of_fields(found)


def _check_texts(found: Any) -> None:
    """Refuse texts that would steer a terminal, or make lines of a page."""
    inner = found
    if isinstance(found, dict):
        inner = [*found, *found.values()]
    if isinstance(found, str) and not found.isprintable():
        raise ValueError(f"a text holds control characters: {found!r:.40}")
    if isinstance(inner, list):
        for each in inner:
            _check_texts(each)


def _map(found: Any) -> Mapping[str, Any] | None:
    if not isinstance(found, dict | None):
        raise TypeError(f"a map is needed, got {found!r:.40}")
    return found


def _checked(kinds: tuple[type, ...], number: Any) -> Any:
    if type(number) not in kinds or not math.isfinite(number):
        raise TypeError(f"a number is needed, got {number!r:.40}")
    return number


_finite = partial(_checked, (int, float))
_whole = partial(_checked, (int,))
