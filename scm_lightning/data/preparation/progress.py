# SPDX-License-Identifier: Apache-2.0
"""The progress bar of a preparation: images, their rate, time left, and what could not be read."""

from collections.abc import Iterator
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from scm_lightning.data.preparation.loader import LoadedImages


class RateColumn(ProgressColumn):
    """Images per second, of late."""

    def render(self, task: Task) -> Text:
        """Show the rate once there is one."""
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.0f} images/s" if rate else "", style="progress.data.speed")


class PreparationProgress:
    """Shows how far a preparation is.

    Args:
        total: images of the whole plan.
        finished: images in shards that are finished already.
        num_unreadable: images that could not be read so far.
    """

    def __init__(self, total: int, finished: int, num_unreadable: int) -> None:
        self._num_unreadable = num_unreadable
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task(self._description(), total=total, completed=finished)

    def __enter__(self) -> "PreparationProgress":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def shown(self, loaded: Iterator[LoadedImages]) -> Iterator[LoadedImages]:
        """Hand batches on, and count them."""
        for batch in loaded:
            self._num_unreadable += len(batch.unreadable)
            self._bar.update(
                self._task,
                advance=len(batch.positions) + len(batch.unreadable),
                description=self._description(),
            )
            yield batch

    def _description(self) -> str:
        if self._num_unreadable:
            return f"preparing, {self._num_unreadable} unreadable"
        return "preparing"
