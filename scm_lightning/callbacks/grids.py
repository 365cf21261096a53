# SPDX-License-Identifier: Apache-2.0
"""Pictures of samples: while training, and as the result of `scm predict`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from scm_lightning.callbacks.pictures import captioned_rows, image_grid
from scm_lightning.callbacks.run import SAMPLER_NAMES, shards_of
from scm_lightning.callbacks.side_files import say_unwritten
from scm_lightning.data import SampleRequest, ShardDataModule
from scm_lightning.metrics import in_first_process


class SampleGrids(Callback):
    """Writes into the run's folder `samples/`.

    While training: `step_N.png` after every validation, unless the disk refuses it. From
    `scm predict`: `NAME.png`, a grid of every sampler's images; `comparison.png`, the samplers
    under each other from the same noise; `samples.npz`, all samples in data units with indices,
    labels and seed.

    Args:
        columns: images in a row.
    """

    def __init__(self, columns: int = 20) -> None:
        if columns < 1:
            raise ValueError(f"columns must be at least 1, got {columns}")
        self.columns = columns
        self._drawn: list[dict[str, Tensor]] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: SampleRequest,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the first samples of a validation."""
        if batch_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking:
            shown = {name: samples.x0[: self.columns] for name, samples in outputs.items()}
            file = self._folder(trainer) / f"step_{trainer.global_step:07d}.png"
            picture = captioned_rows(self._rows(trainer, shown))
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                picture.save(file)
            except OSError as error:
                say_unwritten(file, error, "without this picture")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the samples of the last time."""
        self._drawn = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: SampleRequest,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the samples of a batch."""
        labels = {} if batch.labels is None else {"labels": batch.labels.cpu()}
        drawn = {name: samples.x0.cpu() for name, samples in outputs.items()}
        self._drawn.append({"indices": batch.indices.cpu(), **labels, **drawn})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write grids, the comparison and the samples of all processes, from the first one."""
        parts, self._drawn = in_first_process(self._drawn), []
        if not parts:
            return
        order = torch.cat([part["indices"] for part in parts]).argsort()
        joined = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
        indices, labels = joined.pop("indices"), joined.pop("labels", torch.empty(0))
        folder, datamodule = self._folder(trainer), shards_of(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        for name, x0 in joined.items():
            image_grid(datamodule.to_images(x0), self.columns).save(folder / f"{name}.png")
        shown = {name: x0[: self.columns] for name, x0 in joined.items()}
        real = _heldout(datamodule, labels[: self.columns])
        captioned_rows(self._rows(trainer, {"floor": real} | shown)).save(folder / "comparison.png")
        arrays = {name: x0.numpy() for name, x0 in joined.items()}
        arrays |= {"indices": indices.numpy(), "labels": labels.numpy()}
        seed = np.array(datamodule.sample_seed)
        np.savez(folder / "samples.npz", seed=seed, **arrays)  # type: ignore[arg-type]
        Console().print(f"samples and pictures are in {folder}; look at comparison.png first")

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "samples"

    def _rows(self, trainer: Trainer, samples: dict[str, Tensor]) -> dict[str, Tensor]:
        datamodule = shards_of(trainer)
        return {
            SAMPLER_NAMES.get(name, name): datamodule.to_images(x0) for name, x0 in samples.items()
        }


def _heldout(datamodule: ShardDataModule, labels: Tensor) -> Tensor:
    """Held-out data of the given classes, in the order of the labels. (N, ...), data units."""
    batch = next(datamodule.heldout_batches())
    if batch.labels is None or not len(labels):
        return batch.x0
    taken: dict[int, int] = {}
    chosen = []
    for label in labels.tolist():
        of_class = (batch.labels == label).nonzero().flatten()
        chosen.append(of_class[taken.setdefault(label, 0) % len(of_class)])
        taken[label] += 1
    return batch.x0[torch.stack(chosen)]
