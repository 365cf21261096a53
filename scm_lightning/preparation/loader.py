# SPDX-License-Identifier: Apache-2.0
"""Images of a source, loaded and transformed by several processes, in a fixed order.

Workers only read and compute; what they have made goes to the main process, which alone writes. So
nothing depends on their number, and nothing is left behind when they are ended.
"""

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from scm_lightning.data.shards import Array
from scm_lightning.data.worker_signals import ErrorsAsItems, leave_signals_to_parent
from scm_lightning.preparation.sources.decoding import UnreadableImageError
from scm_lightning.preparation.sources.source import ImageSource
from scm_lightning.preparation.transform import ImageTransform


class LoadedImages(NamedTuple):
    """A batch of images.

    Attributes:
        images: those that could be read. (N, C, H, W) uint8.
        positions: their positions in the batch that was asked for. N numbers.
        unreadable: the others, each as its name and the reason.
    """

    images: Array
    positions: list[int]
    unreadable: list[str]


@dataclass(frozen=True, eq=False)
class ImageBatches(Dataset[LoadedImages]):
    """Batches of images by number.

    Args:
        source: where the images are.
        transform: gives them the shape that is stored.
        shape: that shape. (C, H, W).
        batches: numbers of the images in the source.
    """

    source: ImageSource
    transform: ImageTransform
    shape: tuple[int, ...]
    batches: Sequence[Sequence[int]]

    def __getitem__(self, batch: int) -> LoadedImages:
        """Load one batch.

        Raises:
            ValueError: if the source itself fails, or an image does not get the shape.
        """
        images, positions, unreadable = [], [], []
        for position, number in enumerate(self.batches[batch]):
            name = self.source.items[number].name
            try:
                image = self.transform(self.source.load(number))
            except UnreadableImageError as error:
                reason = " ".join(str(error).split())
                unreadable.append(reason if name in reason else f"{name}: {reason}")
                continue
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{name} of {self.source.description} cannot be used: {error}; the same "
                    "command continues from here"
                ) from error
            if image.shape != self.shape:
                raise ValueError(
                    f"all images must have the shape {self.shape} of the first, got {image.shape} "
                    f"from {name} of {self.source.description}; give size and crop to make them "
                    "equal"
                )
            images.append(image)
            positions.append(position)
        stacked = np.stack(images) if images else np.empty((0, *self.shape), np.uint8)
        return LoadedImages(stacked, positions, unreadable)


def load_images(batches: ImageBatches, num_workers: int) -> Generator[LoadedImages, None, None]:
    """Load batches in their order, some of them ahead.

    Args:
        batches: the batches.
        num_workers: processes that load; with 0 this one does.

    Raises:
        ValueError: if the source itself fails.
        RuntimeError: if a worker was ended, also where the batches are used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more workers than cores
        loader = DataLoader(
            ErrorsAsItems(batches),
            batch_size=None,
            sampler=range(len(batches.batches)),
            num_workers=num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=leave_signals_to_parent,
            # Its own, or a run that writes its shards first would draw other noise later.
            generator=torch.Generator(),
        )
    for loaded in loader:
        if isinstance(loaded, ValueError):
            raise loaded
        yield loaded


def _as_it_is(loaded: Any) -> Any:
    return loaded  # torch would make tensors of it
