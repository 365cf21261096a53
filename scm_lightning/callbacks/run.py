# SPDX-License-Identifier: Apache-2.0
"""Facts about a run that callbacks share."""

from lightning.pytorch import Trainer

from scm_lightning.data import ShardDataModule

SAMPLER_NAMES = {
    "floor": "held-out real",
    "noise": "noise",
    "teacher": "teacher",
    "denoiser": "teacher's denoiser, 1 step",
    "1_step": "student, 1 step",
    "2_step": "student, 2 steps",
    "4_step": "student, 4 steps",
    "8_step": "student, 8 steps",
    "16_step": "student, 16 steps",
}
"""Samplers in words; any other goes by its own name."""


def shards_of(trainer: Trainer) -> ShardDataModule:
    """The run's data module.

    Raises:
        ValueError: if the run has none over shards.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, ShardDataModule):
        raise ValueError(
            f"pictures and scores need the data of a ShardDataModule, got "
            f"{type(datamodule).__name__}; pass one as the trainer's datamodule"
        )
    return datamodule
