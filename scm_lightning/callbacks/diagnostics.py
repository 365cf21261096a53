# SPDX-License-Identifier: Apache-2.0
"""Numbers that tell a healthy run from a failing one; the loss does not.

    tangent_norm/T0-T1   mean norm of g, before it is bounded, over the samples with t in [T0, T1)
    loss/T0-T1           mean loss of these samples; what is not finite is left out of both
    grad_norm            norm of the gradient of the trained network

In a healthy run the tangent norm rises with the warm-up and then settles or falls, at every time. A
norm that goes on climbing, from small times upwards, or samples that get much worse with a second
step, mean too high a learning rate, too short a warm-up or too few small times.
"""

import math
from collections.abc import Mapping
from itertools import chain, pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from scm_lightning.core import widen

TIME_EDGES = (0.0, 0.1, 0.5, 1.1, 1.5, math.pi / 2)
"""Edges of the buckets of t. 1.1 is where the second sampling step starts. Radians."""
OF_SAMPLES = {"tangent_norm": "tangent_norm", "loss": "sample_loss"}
"""Name in the log, and in what a training step returns, (B,)."""


class Diagnostics(Callback):
    """Logs tangent norms and losses per time, and the gradient norm.

    Args:
        every_n_steps: optimizer steps between two lines of the log, which average over them.

    Raises:
        ValueError: if `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        # Of every batch since the last line: t and what is known of its samples, (1 + 2, B). They
        # are sorted by time when a line is written, which is no work in a step.
        self._batches: list[Tensor] = []
        self._grad_norm: Tensor | None = None
        self._last_step = 0  # at the end of the batch before: not every batch makes a step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where the run goes on."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add the samples of a batch; write the means of the last steps."""
        if not isinstance(outputs, Mapping) or "t" not in outputs:
            return
        t = outputs["t"]
        of_samples = [outputs.get(name) for name in OF_SAMPLES.values()]
        unknown = torch.full_like(t, math.nan)
        values = [unknown if each is None else each for each in of_samples]
        self._batches.append(torch.stack([t, *values]).detach().float())
        made_step, self._last_step = trainer.global_step > self._last_step, trainer.global_step
        if made_step and trainer.global_step % self.every_n_steps == 0:
            self._write(trainer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure the gradient of the first parameter group: the trained network's."""
        if (trainer.global_step + 1) % self.every_n_steps == 0:
            parameters = optimizer.param_groups[0]["params"]
            gradients = [each.grad for each in parameters if each.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            # Of a sharded network it is a sum that all processes have to make.
            self._grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _write(self, trainer: Trainer) -> None:
        t, *rows = torch.cat(self._batches, dim=1)
        self._batches = []
        of_samples = widen(torch.stack(rows))
        edges = torch.tensor(TIME_EDGES[1:-1], device=t.device)
        bucket = torch.bucketize(t, edges, right=True)
        known = of_samples.isfinite().to(of_samples.dtype)
        totals = known.new_zeros(2, len(OF_SAMPLES), len(TIME_EDGES) - 1)
        totals.index_add_(2, bucket, torch.stack([of_samples.nan_to_num(0.0, 0.0, 0.0), known]))
        sums, counts = trainer.strategy.reduce(totals, reduce_op="sum").tolist()
        buckets = [f"{low:.2f}-{high:.2f}" for low, high in pairwise(TIME_EDGES)]
        names = [f"{name}/{bucket}" for name in OF_SAMPLES for bucket in buckets]
        flat = zip(names, chain(*sums), chain(*counts), strict=True)
        values = {name: total / count for name, total, count in flat if count}
        if self._grad_norm is not None:
            values["grad_norm"] = float(self._grad_norm)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step - 1)  # as Lightning counts rows
