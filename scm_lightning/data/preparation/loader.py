# SPDX-License-Identifier: Apache-2.0
"""Images of a source, loaded and transformed by several processes, in a fixed order.

Workers only read and compute; what they have made goes to the main process, which alone writes. So
nothing depends on their number, and nothing is left behind when they are ended. They end by
themselves when the main process is gone.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import NamedTuple

import numpy as np

from scm_lightning.data.preparation.transform import ImageTransform
from scm_lightning.data.shards import Array
from scm_lightning.data.sources.source import ImageSource, UnreadableImageError

LOOKAHEAD = 2
"""Batches per worker that are loaded before they are asked for."""


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


class ImageLoader:
    """Loads batches of images in order, some of them ahead.

    Args:
        source: where the images are.
        transform: gives them the shape that is stored.
        shape: that shape. (C, H, W).
        num_workers: processes; with 0 the main process loads.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: ImageTransform,
        shape: tuple[int, ...],
        num_workers: int,
    ) -> None:
        self._job = (source, transform, shape)
        self._num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "ImageLoader":
        """Start the workers."""
        if self._num_workers:
            self._pool = ProcessPoolExecutor(
                self._num_workers,
                multiprocessing.get_context(),
                initializer=_start_worker,
                initargs=self._job,
            )
            # Now, while this process has no other threads that a fork would cut off.
            self._pool.submit(os.getpid)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the workers, without what they have not begun."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def load(self, batches: Iterable[Sequence[int]]) -> Iterator[LoadedImages]:
        """Load batches.

        Args:
            batches: numbers of images in the source.

        Raises:
            ValueError: if the source itself fails, or a worker was ended from outside.
        """
        if self._pool is None:
            for numbers in batches:
                yield load_images(*self._job, numbers)
            return
        pending: deque[Future[LoadedImages]] = deque()
        try:
            for numbers in batches:
                pending.append(self._pool.submit(_load_in_worker, numbers))
                if len(pending) > LOOKAHEAD * self._num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process was ended from outside, often for lack of memory; run the same "
                f"command again, with fewer workers than {self._num_workers} if it recurs"
            ) from error


def load_images(
    source: ImageSource, transform: ImageTransform, shape: tuple[int, ...], numbers: Sequence[int]
) -> LoadedImages:
    """Load one batch here.

    Args:
        source: where the images are.
        transform: gives them the shape that is stored.
        shape: that shape. (C, H, W).
        numbers: numbers of the images in the source.

    Raises:
        ValueError: if the source itself fails, or an image does not get the shape.
    """
    images, positions, unreadable = [], [], []
    for position, number in enumerate(numbers):
        name = source.items[number].name
        try:
            image = transform(source.load(number))
        except UnreadableImageError as error:
            reason = " ".join(str(error).split())
            unreadable.append(reason if name in reason else f"{name}: {reason}")
            continue
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name} of {source.description} cannot be used: {error}; the same command goes on "
                "from here"
            ) from error
        if image.shape != shape:
            raise ValueError(
                f"all images must have the shape {shape} of the first, got {image.shape} from "
                f"{name} of {source.description}; give size and crop to make them equal"
            )
        images.append(image)
        positions.append(position)
    stacked = np.stack(images) if images else np.empty((0, *shape), np.uint8)
    return LoadedImages(stacked, positions, unreadable)


_job: tuple[ImageSource, ImageTransform, tuple[int, ...]]
"""Of a worker: handed over once, not with every batch, because a source can be large."""


def _start_worker(source: ImageSource, transform: ImageTransform, shape: tuple[int, ...]) -> None:
    global _job
    _job = (source, transform, shape)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers in order
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers have a parent"
    parent.join()
    os._exit(1)


def _load_in_worker(numbers: Sequence[int]) -> LoadedImages:
    return load_images(*_job, numbers)
