# SPDX-License-Identifier: Apache-2.0
"""Snapshots of the averaged weights, from which `scm reconstruct` makes averages of other widths.

Two widths are enough, 0.05 and 0.10, every 1/32 of the run or oftener: any width between them is
then reconstructed to 0.1 % of its profile, 0.03 to 1 %.

    model:
      init_args:
        ema:
          - {class_path: scm_lightning.modules.PowerFunction, init_args: {sigma_rel: 0.05}}
          - {class_path: scm_lightning.modules.PowerFunction, init_args: {sigma_rel: 0.10}}
    trainer:
      callbacks:
        - {class_path: scm_lightning.callbacks.EMASnapshots, init_args: {every_n_steps: 1000}}

Source: EDM2 (arXiv 2312.02696), Section 3.2.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from scm_lightning.modules import EMA, GenerativeModule
from scm_lightning.modules.sharding import full_tensor
from scm_lightning.saying import say
from scm_lightning.storage import Snapshot
from scm_lightning.storage.side_files import move_together
from scm_lightning.storage.snapshot import SNAPSHOT_FOLDER


class EMASnapshots(Callback):
    """Writes the power-function averages into the run's folder `ema/`, one file each.

    Files of steps after the one that training starts from are moved to `ema.old-1/`, `-2/`, ...:
    they are from an interrupted or earlier run in the same folder, and this one writes its own. So
    are files that cannot be read.

    Args:
        every_n_steps: optimizer steps between two snapshots; there is one more at the end.
        dtype: data type of the weights in the files. Rounding to float16 is 0.05 % of a weight,
            times the coefficients of the reconstruction: 1 between the widths that were tracked, 5
            at sigma_rel 0.03 and 15 at 0.02.

    Raises:
        ValueError: if `every_n_steps` is below 1, or the data type unknown.

    Source: EDM2, Section 3.2; it takes a snapshot every 8 Mi images, in float16.
    """

    def __init__(
        self,
        every_n_steps: int = 4096,
        dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps of snapshots must be at least 1, got {every_n_steps}")
        if dtype not in ("float16", "bfloat16", "float32"):
            raise ValueError(
                f"dtype of snapshots must be float16, bfloat16 or float32, got {dtype}"
            )
        self.every_n_steps = every_n_steps
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._written = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set aside what is from later steps than this.

        Raises:
            ValueError: if the module has no average to snapshot.
        """
        _, averages = _averages(pl_module)
        start = max(average.counts()[0] for average in averages.values())
        self._written = start
        if trainer.is_global_zero:
            folder = _folder(trainer)
            others = [each for each in folder.glob("*.safetensors") if not _is_until(each, start)]
            if others:
                aside = move_together(others, folder)
                say(
                    f"training starts at step {start}: {len(others)} snapshots in {folder} that "
                    f"are later or damaged are now in {aside}"
                )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write snapshots every so many steps."""
        self._write(trainer, pl_module, self.every_n_steps)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final averages."""
        self._write(trainer, pl_module, 1)

    def _write(self, trainer: Trainer, pl_module: LightningModule, every: int) -> None:
        """Write all averages if a multiple of `every` steps has been taken, and not yet written."""
        module, averages = _averages(pl_module)
        for sigma_rel, average in averages.items():
            step, images = average.counts()
            if step % every or step <= self._written:
                return
            weights = whole_weights(average.network, self.dtype, trainer.is_global_zero)
            if trainer.is_global_zero:
                buffers = tuple(name for name, _ in average.network.named_buffers())
                sigma_data, kind = module.path.sigma_data, module.module_kind
                snapshot = Snapshot(step, images, sigma_rel, sigma_data, kind, buffers)
                snapshot.write(_folder(trainer), weights)
        self._written = step


def whole_weights(network: nn.Module, dtype: torch.dtype, keep: bool) -> dict[str, Tensor]:
    """Copies of a network's parameters on the CPU, gathered if they are sharded.

    Args:
        network: the network; every process must call, since gathering is collective.
        dtype: data type of the copies.
        keep: whether this process wants them; else the result is empty.
    """
    weights = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        weight = full_tensor(parameter.detach())
        if keep:
            weights[name] = weight.to("cpu", dtype, copy=True).contiguous()
    return weights


def _averages(module: LightningModule) -> tuple[GenerativeModule, dict[float, EMA]]:
    """The module as one with averages, and those."""
    if not isinstance(module, GenerativeModule) or not module.power_function_averages():
        raise ValueError(
            f"snapshots need averages with a power-function profile, {type(module).__name__} "
            "has none; set ema to scm_lightning.modules.PowerFunction, or to a list of them"
        )
    return module, module.power_function_averages()


def _is_until(file: Path, step: int) -> bool:
    """Tell whether a file is a snapshot of a step, or of one before."""
    try:
        return Snapshot.read(file).step <= step
    except (OSError, ValueError):
        return False


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / SNAPSHOT_FOLDER
