# SPDX-License-Identifier: Apache-2.0
"""Scores of the same samples by one, two and four processes, for test_distributed_scores.py.

As a program, `python distributed_scores.py FOLDER`, it starts the processes: forked, before
anything else is done, so that they import nothing again.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch

from scm_lightning.metrics import (
    FeatureExtractor,
    Features,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    Reference,
    SampleScores,
    TrainingData,
    fidelity,
)
from scm_lightning.metrics.gathering import in_first_process

NUM_SAMPLES, ORDER_SIZE = 53, 7
WORLD_SIZES = (2, 4)
OWNERS = (0, 1, 0, 2, 0, 1, 0, 2)
"""Process of each order, modulo their number: of two, one draws 39 samples; of four, one none."""


class Waves(FeatureExtractor):
    """Features far from zero that depend on the last digits of the images; three classes."""

    num_features = 6
    description = "waves"

    def forward(self, images):
        features = 1000.0 + (7.0 * images.flatten(1)).sin()
        return Features(features, 9.0 * (features[:, :3] - 1000.0))


def drawn(name):
    """A set of samples, the same in every process. (NUM_SAMPLES, 1, 2, 3)."""
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(NUM_SAMPLES, 1, 2, 3, generator=generator)


def orders(rank, world_size):
    """Numbers of the samples of each order of a process."""
    for owner, indices in zip(OWNERS, torch.arange(NUM_SAMPLES).split(ORDER_SIZE), strict=True):
        if owner % world_size == rank:
            yield indices


def scores(rank, world_size):
    """Scores of two sets by name; none in any process but the first."""
    data = drawn("training data")
    content = TrainingData(lambda: [data], lambda x: x, len(data), data.nbytes, 0.7)
    reference = Reference(Waves(), content, torch.device("cpu"))
    found = {}
    for name in ("one", "other set"):
        samples = drawn(name)
        part = SampleScores(reference, block_size=20, kid=fidelity.is_installed(), nearest=True)
        for indices in orders(rank, world_size):
            part.update(indices, samples[indices], indices % 3)
        part.update(torch.arange(0), samples[:0], torch.arange(0))
        part.sync(in_first_process)
        found[name] = part.compute() if rank == 0 else {}
    return found


def image_metrics(rank, world_size):
    """Values of the public metrics, of real images that the last process has alone."""
    kinds = [FrechetDistance]
    kinds += [KernelDistance, PrecisionRecall, InceptionScore] if fidelity.is_installed() else []
    found = {}
    for kind in kinds:
        metric = kind(Waves())
        if rank == world_size - 1:
            metric.update(drawn("training data"), real=True)
        for indices in orders(rank, world_size):
            metric.update(drawn("one")[indices])
        value = metric.compute()
        found |= value if isinstance(value, dict) else {"fd": value}
    return {name: float(value) for name, value in found.items()}


def one_of(rank, world_size, folder):
    """What one process does."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store{world_size}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=180),
    )
    found = {"scores": scores(rank, world_size), "metrics": image_metrics(rank, world_size)}
    torch.save(found, Path(folder) / f"{world_size}.{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for world_size in WORLD_SIZES:
        torch.multiprocessing.start_processes(
            one_of, (world_size, sys.argv[1]), nprocs=world_size, start_method="fork"
        )
