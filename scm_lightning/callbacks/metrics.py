# SPDX-License-Identifier: Apache-2.0
"""Scores of samples: logged while training, tabled and written by `scm test`."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from scm_lightning.callbacks.report import metrics_content, score_table
from scm_lightning.callbacks.run import shards_of
from scm_lightning.data import SampleRequest
from scm_lightning.metrics import FeatureExtractor, Reference, SampleScores, Score


class SampleMetrics(Callback):
    """Compares drawn samples with the data.

    Logs `val/fd_NAME` at every validation. In `scm test` prints a table and writes
    `metrics.json` into the run's folder.

    Args:
        features: what the Frechet distance looks at; None measures nothing.
    """

    def __init__(self, features: FeatureExtractor | None = None) -> None:
        self.features = features
        self._reference: Reference | None = None
        self._scores: dict[str, SampleScores] = {}
        self._nfe: dict[str, int] = {}
        self._seed = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the samples of the last time."""
        self._scores = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the samples of the last time."""
        self._scores = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: SampleRequest,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in samples."""
        self._update(trainer, pl_module, "val", outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: SampleRequest,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in samples."""
        self._update(trainer, pl_module, "test", outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the distances."""
        for name, scores in self._scores.items():
            distance = scores.compute()["fd"].value
            pl_module.log(f"val/fd_{name}", distance, prog_bar=True, sync_dist=False)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table and write the file."""
        if self._reference is None or self.features is None:
            return
        scores = {"floor": self._floor(trainer, self._reference)}
        scores |= {name: each.compute() for name, each in self._scores.items()}
        if trainer.is_global_zero:
            file = Path(trainer.default_root_dir) / "metrics.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            protocol = {
                "distance": f"Frechet distance in {self.features.description}; no FID",
                "reference": f"{len(self._reference.data)} training images",
                "fd_block": "mean over blocks of as many samples as there are held-out images",
                "checkpoint": str(trainer.ckpt_path),
            }
            content = metrics_content(protocol, scores, self._nfe, self._seed)
            file.write_text(json.dumps(content, indent=2) + "\n")
            Console().print(score_table(scores, self._nfe, self.features.description))
            Console().print(f"written to {file}")

    def _update(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        stage: str,
        outputs: Any,
        request: SampleRequest,
    ) -> None:
        if self.features is None:
            return
        if self._reference is None:
            self._reference = self._make_reference(trainer, pl_module, self.features)
        self._seed = request.seed
        for name, samples in outputs.items():
            self._nfe[name] = samples.nfe
            if name not in self._scores:
                num_samples = shards_of(trainer).num_samples[stage]
                self._scores[name] = SampleScores(self._reference, num_samples)
            self._scores[name].update(request.indices, samples.x0, request.labels)

    def _make_reference(
        self, trainer: Trainer, pl_module: LightningModule, features: FeatureExtractor
    ) -> Reference:
        datamodule = shards_of(trainer)
        return Reference(
            features,
            datamodule.to_images,
            (batch.x0 for batch in datamodule.reference_batches()),
            datamodule.sigma_data,
            block_size=sum(len(batch.x0) for batch in datamodule.heldout_batches()),
            device=pl_module.device,
        )

    def _floor(self, trainer: Trainer, reference: Reference) -> dict[str, Score]:
        """Scores of the held-out data, as if they were samples; the same in every process."""
        scores, count = SampleScores(reference, reference.block_size, shared=False), 0
        for batch in shards_of(trainer).heldout_batches():
            x0, labels = batch.x0.to(reference.device), batch.labels
            indices = torch.arange(count, count + len(x0), device=reference.device)
            scores.update(indices, x0, None if labels is None else labels.to(reference.device))
            count += len(x0)
        return scores.compute()
