# SPDX-License-Identifier: Apache-2.0
"""Observation of a training between two readings."""

import resource
import sys
import time

import torch
from torch import Tensor

GIB = 2**30


class Watch:
    """Mean loss and speed since the last reading; time spent on validations does not count."""

    _loss: Tensor
    _num_losses: int
    _num_images: int

    def __init__(self) -> None:
        self._clear()

    @property
    def seconds(self) -> float:
        """Time since the last reading."""
        return time.monotonic() - self._start

    def see(self, loss: Tensor | None, num_images: int) -> None:
        """Take in a batch.

        Args:
            loss: its mean loss, which stays on its device; None if nobody says. ().
            num_images: its size, in all processes.
        """
        if loss is not None:
            self._loss = loss.detach() + self._loss  # whose zero, of the CPU, adds to any device
            self._num_losses += 1
        self._num_images += num_images

    def pause(self) -> None:
        """Stop the watch."""
        self._paused = time.monotonic()

    def go_on(self) -> None:
        """Let it run again."""
        self._start += time.monotonic() - self._paused

    def read(self) -> tuple[float | None, float]:
        """Mean loss, None without any, and images per second, since the last reading."""
        loss = float(self._loss) / self._num_losses if self._num_losses else None
        speed = self._num_images / max(self.seconds, 1e-9)
        self._clear()
        return loss, speed

    def _clear(self) -> None:
        self._start = self._paused = time.monotonic()
        self._loss = torch.zeros(())
        self._num_losses = self._num_images = 0


def peak_memory(device: torch.device) -> str:
    """Most memory that was in use so far: of a GPU by this process, or of the process, in words."""
    if device.type == "cuda":
        return f"GPU {torch.cuda.max_memory_allocated(device) / GIB:.1f} GiB"
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return f"RAM {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB:.1f} GiB"
