# SPDX-License-Identifier: Apache-2.0
"""Noise of the training signal of a trained network: measured when a run ends.

The quantities: `modules/gradient_noise.py`.
"""

import inspect
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from scm_lightning.core.times import MAX_TIME
from scm_lightning.data import Batch
from scm_lightning.modules import GenerativeModule
from scm_lightning.modules.gradient_noise import gradient_noise
from scm_lightning.storage.side_files import write_result

FILE = "gradient_noise.json"
TIMES = (0.01, 0.03, 0.1, 0.3, 0.7, 1.1, 1.4, 1.5, 1.55, 1.5645)
"""The last is atan(80 / sigma_data) with a sigma_data of 0.5, where sampling starts. Radians."""


class GradientNoise(Callback):
    """Measures the gradient at fixed times when training ends; writes `gradient_noise.json`.

    The weights, their gradients and the state of the random numbers are left as they were. The data
    are the last training batches.

    Args:
        times: times to measure at. Radians.
        num_batches: mini-batches K per time.
        num_samples: samples of every mini-batch, the first of a training batch.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, times: Sequence[float] = TIMES, num_batches: int = 16, num_samples: int = 128
    ) -> None:
        if not times or not all(0.0 < t <= MAX_TIME for t in times):
            raise ValueError(
                f"times of gradient noise must be angles in (0, {MAX_TIME}], got {list(times)}"
            )
        if num_batches < 2 or num_samples < 1:
            raise ValueError(
                f"gradient noise takes at least 2 batches of at least 1 sample, got {num_batches} "
                f"of {num_samples}"
            )
        self.times = tuple(times)
        self.num_samples = num_samples
        self._batches: deque[Batch] = deque(maxlen=num_batches)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse at once what cannot be measured at the end.

        Raises:
            ValueError: if the run is too short, has several processes or another module.
        """
        steps, needed = trainer.max_steps - trainer.global_step, self._batches.maxlen or 0
        takes_times = "times" in inspect.signature(pl_module.training_step).parameters
        is_ours = isinstance(pl_module, GenerativeModule) and takes_times
        if not is_ours or trainer.world_size > 1 or 0 <= steps < needed:
            raise ValueError(
                f"gradient noise needs a GenerativeModule whose training_step takes `times`, one "
                f"process and at least {needed} steps, got {type(pl_module).__name__}, "
                f"{trainer.world_size} and {steps}; leave the callback out, or lower num_batches"
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Keep the batch.

        Raises:
            ValueError: if it is too small.
        """
        if len(batch.x0) < self.num_samples:
            raise ValueError(
                f"training batches must hold the {self.num_samples} samples that gradient noise is "
                f"measured on, got {len(batch.x0)}; lower num_samples"
            )
        labels, named, nulls = batch.given().first(self.num_samples)
        x0 = batch.x0[: self.num_samples]
        self._batches.append(Batch(x0, labels, conditions=named, nulls=nulls))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and write."""
        content: dict[str, Any] = {
            "step": trainer.global_step,
            "num_batches": len(self._batches),
            "num_samples": self.num_samples,
            "t": list(self.times),
            "tan_t": [math.tan(t) for t in self.times],
        }
        assert isinstance(pl_module, GenerativeModule), "checked when training began"
        parameters = trainer.optimizers[0].param_groups[0]["params"]
        in_precision = trainer.precision_plugin.train_step_context
        rows = [
            gradient_noise(pl_module, self._batches, t, parameters, in_precision)
            for t in self.times
        ]
        content |= {name: [row[name] for row in rows] for name in rows[0]}
        file = Path(trainer.default_root_dir) / FILE
        write_result(file, json.dumps(content, indent=2) + "\n")
        self._batches.clear()
