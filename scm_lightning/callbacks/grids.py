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
from scm_lightning.data import SampleRequest, ShardDataModule


class SampleGrids(Callback):
    """Writes into the run's folder `samples/`.

    While training: `step_N.png` after every validation. From `scm predict`: `NAME.png`, a grid of
    every sampler's images; `comparison.png`, the samplers under each other from the same noise;
    `samples.npz`, all samples in data units with indices, labels and seed.

    Args:
        columns: images in a row.
    """

    def __init__(self, columns: int = 20) -> None:
        if columns < 1:
            raise ValueError(f"columns must be at least 1, got {columns}")
        self.columns = columns
        self._drawn: list[tuple[SampleRequest, dict[str, Tensor]]] = []

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
            captioned_rows(self._rows(trainer, shown)).save(file)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to write the parts of several processes over each other.

        Raises:
            ValueError: if there is more than one process.
        """
        if trainer.world_size > 1:
            raise ValueError(
                f"scm predict writes from one process, got {trainer.world_size}; pass "
                "--trainer.devices 1 --trainer.num_nodes 1"
            )
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
        self._drawn.append((batch, {name: samples.x0.cpu() for name, samples in outputs.items()}))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write grids, the comparison and the samples."""
        folder, requests = self._folder(trainer), [request for request, _ in self._drawn]
        names = list(self._drawn[0][1])
        samples = {name: torch.cat([drawn[name] for _, drawn in self._drawn]) for name in names}
        labels = torch.cat([r.labels for r in requests if r.labels is not None] or [torch.empty(0)])
        datamodule = shards_of(trainer)
        for name in names:
            image_grid(datamodule.to_images(samples[name]), self.columns).save(
                folder / f"{name}.png"
            )
        shown = {name: x0[: self.columns] for name, x0 in samples.items()}
        real = _heldout(datamodule, labels[: self.columns])
        captioned_rows(self._rows(trainer, {"floor": real} | shown)).save(folder / "comparison.png")
        arrays = {name: x0.numpy() for name, x0 in samples.items()}
        indices = torch.cat([request.indices for request in requests]).numpy()
        arrays |= {"indices": indices, "labels": labels.numpy(), "seed": np.array(requests[0].seed)}
        np.savez(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
        Console().print(f"samples and pictures are in {folder}; look at comparison.png first")
        self._drawn = []

    def _folder(self, trainer: Trainer) -> Path:
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

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
