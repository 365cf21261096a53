# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run, handed to the loggers that take any."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from scm_lightning.whole_files import write_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_picture(trainer: Trainer, name: str, file: Path) -> None:
    """Hand a picture to TensorBoard, Weights & Biases and others that log images.

    Args:
        trainer: owner of the loggers.
        name: what the picture is called there.
        file: the picture, as it was written.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(Image.open(file).convert("RGB"))
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            logger.log_image(name, [str(file)], step=trainer.global_step)


def write_and_log(
    trainer: Trainer, name: str, file: Path, draw: "Callable[[], Image.Image | Figure]"
) -> bool:
    """Draw a picture, write it, and hand it to the loggers; see `write_picture`.

    Args:
        trainer: owner of the loggers.
        name: what the picture is called there.
        file: where the picture is to be, as PNG.
        draw: draws it.

    Returns:
        Whether the picture is there.
    """
    is_drawn = write_picture(file, draw)
    if is_drawn:
        log_picture(trainer, name, file)
    return is_drawn


def log_numbers(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Hand numbers of a finished stage to all loggers.

    Args:
        trainer: owner of the loggers.
        values: by name.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)
        logger.save()
