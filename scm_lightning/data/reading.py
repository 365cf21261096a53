# SPDX-License-Identifier: Apache-2.0
"""Options for reading shards, of every data module."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Reading:
    """Options for reading shards.

    Args:
        mapped: decode the training split at the start and keep it in memory, of every process;
            None for sets in a folder of up to 4 GiB. Other sets are streamed.
        shuffle_buffer: samples that a loader worker shuffles at a time, in streamed sets.
        start_method: how loader workers are started: fork, spawn or forkserver; None for the
            system's.
        verify: once, when a shard is first read to its end, its content is compared with the
            checksum in the index; or never.

    Raises:
        ValueError: if a number is out of range.
    """

    mapped: bool | None = None
    shuffle_buffer: int = 8192
    start_method: Literal["fork", "spawn", "forkserver"] | None = None
    verify: Literal["once", "never"] = "once"

    def __post_init__(self) -> None:
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer must be at least 1, got {self.shuffle_buffer}")
