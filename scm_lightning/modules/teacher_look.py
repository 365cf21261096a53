# SPDX-License-Identifier: Apache-2.0
"""The teacher's look at the first batch of a run; see `teachers.first_batch`."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer

from scm_lightning.core import TrigFlow
from scm_lightning.data.batch import Batch
from scm_lightning.networks.classes import num_known_classes
from scm_lightning.saying import say, warn
from scm_lightning.teachers import FirstLook, FrozenTeacher, SourceTeacher, first_look


def check_first_batch(
    teacher: FrozenTeacher, batch: Batch, path: TrigFlow, trainer: Trainer
) -> None:
    """Let the teacher denoise the first batch, and say how well it does.

    A model of another source is refused if it does badly: its files do not say on which data it was
    trained. A run of this package, and any other network, is what the user has made: it is said.

    Args:
        teacher: the teacher.
        batch: the first batch; of several processes each has one.
        path: owner of `sigma_data`.
        trainer: the run's.

    Raises:
        ValueError: if a model of another source is of other latents, denoises worse than a linear
            filter, or labels are off by one.
    """
    foreign = teacher.network if isinstance(teacher.network, SourceTeacher) else None
    index: Any = getattr(getattr(trainer, "datamodule", None), "index", None)
    are_latents = getattr(index, "latents", None) is not None
    if foreign and are_latents and (misfit := foreign.latents_misfit(index.mean, index.std)):
        raise ValueError(f"the teacher does not fit the data: {misfit}")
    with trainer.precision_plugin.forward_context():
        look = first_look(teacher, batch.x0, batch.given(), path, num_known_classes(teacher))
    # All processes must come to the same end, or those that go on wait for ever.
    look = _mean(look, trainer)
    if problem := look.misfit():
        problem = f"the teacher does not fit the data: {problem}"
        if foreign is not None:
            raise ValueError(problem)
        if trainer.is_global_zero:
            warn(problem)
    elif foreign is not None:
        say(look.described())


def _mean(look: FirstLook, trainer: Trainer) -> FirstLook:
    numbers = torch.tensor([*look.teacher, *look.linear, *look.moved.values()])
    over_all = partial(trainer.strategy.reduce, reduce_op="mean")
    found = over_all(numbers.to(trainer.strategy.root_device)).tolist()
    num = len(look.teacher)
    moved = dict(zip(look.moved, found[2 * num :], strict=True))
    return FirstLook(found[:num], found[num : 2 * num], moved)
