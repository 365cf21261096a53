# SPDX-License-Identifier: Apache-2.0
"""Optimizer steps with a loss or gradient that is not finite are left out, by all processes.

After the last backward pass of a step, when gradients have been reduced, and before they are
clipped, the processes compare one number: whether a loss of the step, or the norm of the gradients
of all parameter groups, is not finite in any of them. If so, all take their gradients away. Without
gradients no optimizer changes a weight or a moment; the module moves neither averages nor learning
rate; and the step is not counted, so that the warm-up of r and the end of the run stay where they
were. Buffers that a network changes in its forward pass are not protected; those here have none.

    bad_steps            steps left out since the run began, in the log
    bad_numbers.jsonl    one line per such step, in the run's folder: the step, the first parameter
                         whose gradient is bad, and of the worst sample the process, the time t in
                         radians, the loss, and its key or number

The worst sample is the first whose loss or tangent is not finite, or whose loss is the largest.
After many bad steps in a row it is no longer single samples, and the run stops.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from scm_lightning.callbacks.stop_signals import StopSignals
from scm_lightning.data import ShardDataModule
from scm_lightning.modules import GenerativeModule
from scm_lightning.saying import warn
from scm_lightning.storage.side_files import make_way, say_unwritten

FILE = "bad_numbers.jsonl"
PRINTED_STEPS = 10
"""Bad steps that are printed; of later ones every hundredth is, the others are in the file."""


class BadNumbers(Callback):
    """Leaves out steps whose loss or gradient is not finite; see the module.

    Args:
        max_in_a_row: so many bad steps one after the other stop the run.

    Raises:
        ValueError: if `max_in_a_row` is below 1.
    """

    def __init__(self, max_in_a_row: int = 10) -> None:
        if max_in_a_row < 1:
            raise ValueError(f"max_in_a_row of bad steps must be at least 1, got {max_in_a_row}")
        self.max_in_a_row = max_in_a_row
        self.bad_steps = 0
        self._streak: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._samples: list[list[Tensor]] = []
        self._bad_parameter: str | None = None
        self._is_bad = False

    def state_dict(self) -> dict[str, Any]:
        """Bad steps so far."""
        return {"bad_steps": self.bad_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting."""
        self.bad_steps = state_dict["bad_steps"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with nothing seen; log the count."""
        self._losses, self._samples, self._streak = [], [], []
        self._log(trainer)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Keep the loss of a batch until the step."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Decide together; take all gradients away, and the step's number back, if it is bad."""
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        is_bad = ~_norm(parameters).isfinite()
        if self._losses:  # a module may return none, to pass over a batch
            is_bad = is_bad | ~torch.stack(self._losses).isfinite().all()
        self._losses = []
        self._is_bad = _of_all_processes(is_bad, trainer)
        if not self._is_bad:
            self._streak = []
            return
        self._bad_parameter = _first_bad(pl_module)
        for parameter in parameters:
            parameter.grad = None
        if isinstance(pl_module, GenerativeModule):
            pl_module.leave_out_step()
        loop: Any = trainer.fit_loop.epoch_loop
        step = loop.automatic_optimization.optim_progress.optimizer.step
        for progress in (step.total, step.current):
            progress.ready -= 1
            progress.completed -= 1  # Lightning adds one when the step returns
        loop._batches_that_stepped -= 1

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Report a bad step, once the samples of all its batches are known.

        Raises:
            ValueError: if there were too many in a row.
        """
        if isinstance(outputs, Mapping) and "t" in outputs and "sample_loss" in outputs:
            t, loss = outputs["t"], outputs["sample_loss"]
            norm, numbers = outputs.get("tangent_norm"), getattr(batch, "indices", None)
            unknown = torch.full_like(t, -1, dtype=torch.int64)
            self._samples.append(
                [t, loss, loss if norm is None else norm, unknown if numbers is None else numbers]
            )
        if self._losses:
            return  # more batches of the same step follow
        samples, self._samples = self._samples, []
        if self._is_bad:
            self._is_bad = False
            self._report(trainer, samples)

    def _report(self, trainer: Trainer, samples: list[list[Tensor]]) -> None:
        self.bad_steps += 1
        own = {"process": trainer.global_rank, "gradient": self._bad_parameter}
        data: Any = getattr(trainer, "datamodule", None)
        own |= _worst_sample(samples, data.keys if isinstance(data, ShardDataModule) else None)
        found: list[Any] = [own] * trainer.world_size
        if trainer.world_size > 1:
            distributed.all_gather_object(found, own)
        worst = max(found, key=lambda each: float(each.pop("badness")))
        worst["gradient"] = next((each["gradient"] for each in found if each["gradient"]), None)
        report = {"step": trainer.global_step + 1, "bad_steps": self.bad_steps, **worst}
        self._streak.append(report)
        file = Path(trainer.default_root_dir) / FILE
        self._log(trainer)
        if trainer.is_global_zero:
            _write(file, report)
        if len(self._streak) >= self.max_in_a_row:
            times = [each["t"] for each in self._streak if each["t"] is not None]
            where = f", at t from {min(times):.4g} to {max(times):.4g}" if times else ""
            raise ValueError(
                f"loss and gradients must be finite, but step {report['step']} failed "
                f"{len(self._streak)} times in a row{where}; the last checkpoint is good; see "
                f"{file}, then lower the learning rate, or take out the samples it names"
            )

    def _log(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"bad_steps": self.bad_steps}, step=trainer.global_step)


def _of_all_processes(is_bad: Tensor, trainer: Any) -> bool:
    """Tell whether a step is bad anywhere; agree on the way whether to stop after it.

    One reduction for both, since each costs a small network more than a percent of its step.
    """
    if trainer.world_size == 1:
        return bool(is_bad)
    stops = [each for each in trainer.callbacks if isinstance(each, StopSignals)]
    asked = is_bad.new_tensor(max((each.asked for each in stops), default=0), dtype=torch.float32)
    notes = torch.stack([is_bad.float(), asked])
    # Not by the strategy's reduction, which adds a barrier.
    distributed.all_reduce(notes, distributed.ReduceOp.MAX)
    found, signum = notes.tolist()  # the one wait for the device in a step
    for each in stops:
        each.agreed = int(signum)
    return bool(found)


def _local(gradient: Tensor) -> Tensor:
    """The part of a gradient that is in this process."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of this process's gradients; of all norms it is the fastest to compute. Scalar."""
    gradients = [_local(each.grad) for each in parameters if each.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _first_bad(module: nn.Module) -> str | None:
    """Name of the first parameter with a gradient that is not finite in this process."""
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not _local(parameter.grad).isfinite().all():
            return name
    return None


def _worst_sample(
    samples: list[list[Tensor]], keys: Callable[[Tensor], list[str]] | None
) -> dict[str, Any]:
    """The worst of this process's samples of a step.

    Args:
        samples: per batch t, loss, norm of the tangent and number, (B,) each.
        keys: tells the keys of samples by their numbers; None where nobody knows them.

    Returns:
        `t`, `loss`, `sample`: None each if unknown; and `badness`, to compare between processes.
    """
    if not samples:
        return {"t": None, "loss": None, "sample": None, "badness": -1.0}
    t, loss, norm, number = (torch.cat(column) for column in zip(*samples, strict=True))
    badness = torch.where(loss.isfinite() & norm.isfinite(), loss.abs(), math.inf)
    worst = int(badness.argmax())
    value, name = float(loss[worst]), number[worst : worst + 1]
    sample = None if name < 0 else int(name) if keys is None else keys(name)[0]
    return {
        "t": float(t[worst]),
        "loss": value if math.isfinite(value) else str(value),
        "sample": sample,
        "badness": float(badness[worst]),
    }


def _write(file: Path, report: dict[str, Any]) -> None:
    """Append a line to the file; print it, if there have not been many."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        make_way(file)
        with file.open("a") as lines:
            lines.write(json.dumps(report) + "\n")
    except OSError as error:
        say_unwritten(file, error, "without this line of it")
    number = report["bad_steps"]
    if number <= PRINTED_STEPS or number % 100 == 0:
        t = "unknown" if report["t"] is None else f"{report['t']:.4g}"
        warn(
            f"step {report['step']} left out: loss {report['loss']} at t = {t}, sample "
            f"{report['sample']} of process {report['process']}, gradient of {report['gradient']}; "
            f"{number} so far, see {file}"
        )
