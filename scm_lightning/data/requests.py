# SPDX-License-Identifier: Apache-2.0
"""Orders for samples to draw, dealt to processes."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.data import IterableDataset

from scm_lightning.core.conditions import NULL_LABEL
from scm_lightning.data.batch import SampleRequest
from scm_lightning.data.collate import Collate
from scm_lightning.data.members import Array
from scm_lightning.data.shards import Sample


class Prompt(NamedTuple):
    """A text to draw by.

    Attributes:
        text: the text, to be shown.
        conditions: what it became, by name; arrays as the shards hold them.
    """

    text: str
    conditions: Mapping[str, Array]


@dataclass(frozen=True)
class Given:
    """Conditions to draw samples by: those of held-out samples, in their order again and again.

    Args:
        heldout: the held-out samples.
        collate: makes conditions of them.
        prompts: whose conditions stand in the place of those of the same names, in their order
            again and again, without a class; none for those of the samples alone.

    Raises:
        ValueError: if a prompt has conditions that the data have not, or of another kind.
    """

    heldout: Iterable[Sample]
    collate: Collate
    prompts: Sequence[Prompt] = ()

    def __post_init__(self) -> None:
        declared = self.collate.index.conditions
        for prompt in self.prompts:
            for name, array in prompt.conditions.items():
                if name not in declared:
                    raise ValueError(
                        f"prompts must be made into conditions that the data have, which are "
                        f"{', '.join(declared) or 'none'}, got {name}; prepare data with captions"
                    )
                if misfit := declared[name].misfit(array):
                    raise ValueError(f"{name} of the prompt {prompt.text!r:.80} {misfit}")

    def __iter__(self) -> Iterator[Sample]:
        """Samples without end; the caption of one of a prompt is the prompt."""
        samples = itertools.chain.from_iterable(itertools.repeat(self.heldout))
        if not self.prompts:
            yield from samples
        for sample, prompt in zip(samples, itertools.cycle(self.prompts), strict=False):
            conditions = {**sample.conditions, **prompt.conditions}
            yield sample._replace(label=NULL_LABEL, conditions=conditions, caption=prompt.text)


@dataclass(eq=False)
class RequestStream(IterableDataset[SampleRequest]):
    """Orders for samples 0 to N - 1, dealt to processes unpadded.

    Without conditions every class comes equally often; with them, sample i has the conditions and
    the class of held-out sample i, which begin anew after the last.

    Whole orders are dealt, so that each is drawn in the same batch whatever the number of
    processes, and its samples are the same to the last bit. Every process gets as many orders, the
    last of which may be empty: sharded networks are gathered by all processes together.

    Args:
        num_samples: number of samples N of the whole set.
        num_classes: classes, taken in turn; 0 for no labels.
        batch_size: samples per order.
        shape: shape of one sample.
        seed: seed of the set.
        rank: number of this process.
        world_size: number of processes.
        given: conditions to draw by; None for classes alone.
    """

    num_samples: int
    num_classes: int
    batch_size: int
    shape: tuple[int, ...]
    seed: int
    rank: int
    world_size: int
    given: Given | None = None

    def __len__(self) -> int:
        """Number of orders."""
        return -(-self.num_samples // (self.world_size * self.batch_size))

    def __iter__(self) -> Iterator[SampleRequest]:
        """Yield the orders."""
        given = None if self.given is None else iter(self.given)
        at = 0
        for turn in range(len(self)):
            number = turn * self.world_size + self.rank
            own = range(self.num_samples)[number * self.batch_size : (number + 1) * self.batch_size]
            indices = torch.tensor(own, dtype=torch.int64)
            if self.given is None or given is None:
                labels = indices % self.num_classes if self.num_classes else None
                yield SampleRequest(indices, labels, self.shape, self.seed)
                continue
            # One at least, since an empty order has conditions too, of no sample.
            numbers = range(own.start, max(own.stop, own.start + 1))
            samples = [*itertools.islice(given, numbers.start - at, numbers.stop - at)]
            at = numbers.stop
            batch = self.given.collate.samples(samples, numbers, numbers)
            labels, named, nulls = batch.given().first(len(own))
            prompts = [s.caption for s in samples[: len(own)] if s.caption is not None]
            yield SampleRequest(indices, labels, self.shape, self.seed, named, nulls, prompts)
