# SPDX-License-Identifier: Apache-2.0
"""Scores of the same samples by one, two and four processes, for test_distributed_scores.py.

As a program, `python distributed_scores.py FOLDER`, it starts the processes: forked, before
anything else is done, so that they import nothing again.
"""

import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from scm_lightning.metrics import (
    FeatureExtractor,
    Features,
    Reference,
    SampleSet,
    Scoring,
    TrainingData,
    from_first_process,
)

NUM_SAMPLES, ORDER_SIZE = 53, 7
WORLD_SIZES = (2, 4)
SCORING = partial(Scoring, block_size=20, kid=False, precision_recall=False)


class Waves(FeatureExtractor):
    """Features that depend on the last digits of the images; logits for three classes."""

    num_features = 6
    description = "waves"

    def forward(self, images):
        features = (7.0 * images.flatten(1)).sin()
        return Features(features, features[:, :3])


def drawn(name):
    """A set of samples, the same in every process. (NUM_SAMPLES, 1, 2, 3)."""
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(NUM_SAMPLES, 1, 2, 3, generator=generator)


def scores(rank, world_size):
    """Scores by the name of the set, as all processes have them; order k is of process k mod n."""
    data = drawn("training data")
    content = TrainingData(lambda: [data], lambda x: x, len(data), data.nbytes, 0.7)
    reference = Reference(Waves(), content, torch.device("cpu"))
    found = {}
    for name in ("one", "other set"):
        samples, part = drawn(name), SampleSet(reference)
        orders = torch.arange(NUM_SAMPLES).split(ORDER_SIZE)
        for indices in orders[rank::world_size]:
            part.update(indices, samples[indices], indices % 3)
        part.update(torch.arange(0), samples[:0], torch.arange(0))
        joined = part.joined()
        assert (joined is not None) == (rank == 0)
        found[name] = from_first_process(joined and SCORING(reference).scores(joined))
    return found


def one_of(rank, world_size, folder):
    """What one process does."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store{world_size}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=180),
    )
    torch.save(scores(rank, world_size), Path(folder) / f"{world_size}.{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for world_size in WORLD_SIZES:
        torch.multiprocessing.start_processes(
            one_of, (world_size, sys.argv[1]), nprocs=world_size, start_method="fork"
        )
