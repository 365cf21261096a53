# SPDX-License-Identifier: Apache-2.0
"""Floor 4: shards in, batches out.

Modules that need lightning are imported on first use: a spawned loader worker does not need it, and
starts several times faster.
"""

import importlib
from typing import TYPE_CHECKING, Any

from scm_lightning.data.batch import Batch, SampleRequest
from scm_lightning.data.degradation import Degradation
from scm_lightning.data.degradations import Hole, LowResolution
from scm_lightning.data.index import Latents, Shard, ShardIndex, Split
from scm_lightning.data.loader import NumberedBatches, TrainingLoader
from scm_lightning.data.reading import Reading
from scm_lightning.data.requests import Prompt, RequestStream
from scm_lightning.data.shards import Sample, read_shard, write_shard
from scm_lightning.data.stored_conditions import StoredCondition, write_null

if TYPE_CHECKING:
    from scm_lightning.data.module import ShardDataModule
    from scm_lightning.data.noise import GaussianNoise
    from scm_lightning.data.prepared import Shards

__all__ = [
    "Batch",
    "Degradation",
    "GaussianNoise",
    "Hole",
    "Latents",
    "LowResolution",
    "NumberedBatches",
    "Prompt",
    "Reading",
    "RequestStream",
    "Sample",
    "SampleRequest",
    "Shard",
    "ShardDataModule",
    "ShardIndex",
    "Shards",
    "Split",
    "StoredCondition",
    "TrainingLoader",
    "read_shard",
    "write_null",
    "write_shard",
]

_ON_FIRST_USE = {"GaussianNoise": "noise", "ShardDataModule": "module", "Shards": "prepared"}


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return getattr(importlib.import_module(f"scm_lightning.data.{_ON_FIRST_USE[name]}"), name)
    raise AttributeError(f"module 'scm_lightning.data' has no attribute {name!r}")
