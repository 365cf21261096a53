# SPDX-License-Identifier: Apache-2.0
"""The loader of training batches: as long as a pass, endless over passes, exact to resume.

A trainer's epoch is one pass in whole optimizer steps; the samples left over open the next, so that
every batch is full and none is left out. The loader keeps its workers from epoch to epoch, and
knows how many batches it has handed out: that number, in a checkpoint, is the position of the data.
"""

import logging
import multiprocessing
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch.utils.data import DataLoader, Dataset

from scm_lightning.data.batch import Batch
from scm_lightning.data.worker_signals import ErrorsAsItems, end_stopped, leave_signals_to_parent

logger = logging.getLogger(__name__)

ENDLESS = 1 << 62
NEWS_SECONDS = 1.0
"""Longest delay of the news of a worker's end after the end of the connection to it."""


class NumberedBatches(Dataset[Batch], ABC):
    """Training batches by their number, without end.

    Attributes:
        elastic: whether the order is the same for any number of processes and workers.
        num_samples: samples of a pass, over all processes.
    """

    elastic: bool
    num_samples: int

    @abstractmethod
    def __getitem__(self, number: int) -> Batch:
        """Batch of a number, from 0."""


class TrainingLoader:
    """Batches by number, in order. Lightning saves and restores its state.

    Args:
        batches: batches by number.
        batch_size: samples per batch and process.
        world_size: number of processes.
        batches_per_step: batches that an optimizer step is accumulated from.
        num_workers: loader processes; 0 loads in this one.
        start_method: how they are started: fork, spawn or forkserver; None for the system's.
    """

    def __init__(
        self,
        batches: NumberedBatches,
        batch_size: int,
        world_size: int,
        batches_per_step: int,
        num_workers: int,
        start_method: str | None,
    ) -> None:
        self.batches = batches
        self.batch_size = batch_size
        self.world_size = world_size
        self.num_workers = num_workers
        self.start_method = start_method
        num_steps = batches.num_samples // (batch_size * world_size * batches_per_step)
        self.num_batches = max(num_steps, 1) * batches_per_step
        self.num_given = 0
        self._stream: Iterator[Batch | ValueError] | None = None

    def __len__(self) -> int:
        """Batches of an epoch, for every process."""
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        """Continue from the last batch handed out, for one epoch.

        Raises:
            ValueError: if the data are damaged; in one line, also from a worker.
            RuntimeError: torch's, if a worker was ended.
        """
        if self._stream is None:
            self._stream = self._start()
        for _ in range(self.num_batches):
            try:
                batch = next(self._stream)
            except (OSError, EOFError) as error:
                time.sleep(NEWS_SECONDS)  # in which torch may say itself that a worker was ended
                if gone := [each.pid for each in self._workers if not each.is_alive()]:
                    message = f"DataLoader worker (pid {gone[0]}) exited unexpectedly"
                    raise RuntimeError(message) from error
                raise
            if isinstance(batch, ValueError):
                self._stream = None  # ends the workers now, not when rubbish is collected
                raise batch
            self.num_given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches handed out, and of what size."""
        return {
            "num_given": self.num_given,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "num_workers": self.num_workers,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the samples that were handed out."""
        num_samples = state["num_given"] * state["batch_size"] * state["world_size"]
        self.num_given, rest = divmod(num_samples, self.batch_size * self.world_size)
        self._stream = None
        if rest:
            logger.warning(
                "%d samples of the last batches come again: batches are of %d samples now",
                rest,
                self.batch_size * self.world_size,
            )
        dealt = {name: number for name, number in self.state_dict().items() if name != "num_given"}
        before = {name: state[name] for name in dealt}
        if not self.batches.elastic and dealt != before:
            logger.warning(
                "streamed data continue in another order: batch size, processes and workers were "
                "%s and are %s, so some samples of this pass come twice and others not at all",
                (*before.values(),),
                (*dealt.values(),),
            )

    def _start(self) -> Iterator[Batch | ValueError]:
        """Start the workers, and watch over them."""
        others = multiprocessing.active_children()
        loader: DataLoader[Batch | ValueError] = DataLoader(
            ErrorsAsItems(self.batches),
            batch_size=None,
            sampler=range(self.num_given, ENDLESS),
            num_workers=self.num_workers,
            multiprocessing_context=self.start_method if self.num_workers else None,
            worker_init_fn=leave_signals_to_parent,
        )
        stream = iter(loader)
        self._workers = {*multiprocessing.active_children()} - {*others}
        pids = [each.pid for each in self._workers]
        threading.Thread(target=end_stopped, args=(pids,), daemon=True).start()
        return stream
