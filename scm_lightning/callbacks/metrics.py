# SPDX-License-Identifier: Apache-2.0
"""Scores of samples: logged while training, tabled and written by `scm test`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from scm_lightning.callbacks.logged_pictures import log_numbers, log_picture
from scm_lightning.callbacks.report import caption, metrics_content, protocol, score_table
from scm_lightning.callbacks.run import shards_of
from scm_lightning.callbacks.sweep import report_sweep
from scm_lightning.callbacks.word_match import captions_of, word_match, word_table
from scm_lightning.data import SampleRequest, ShardDataModule, Shards
from scm_lightning.data.location import is_remote
from scm_lightning.data.prompts import TEXT
from scm_lightning.metrics import (
    ClipFeatures,
    FeatureExtractor,
    PixelFeatures,
    Reference,
    SampleScores,
    Score,
    TrainingData,
)
from scm_lightning.metrics.gathering import in_first_process
from scm_lightning.saying import console, say, warn, working
from scm_lightning.storage.side_files import write_result


class SampleMetrics(Callback):
    """Compares drawn samples with the data.

    Logs `val/fdN_NAME` at every validation, N being the number of samples: far fewer than a result
    is made of; of clips `val/frame_distance_N_NAME` and `val/temporal_distance_N_NAME`. In
    `scm test` prints a table and writes `metrics.json` into the run's folder. Features of the
    training data are kept in the folder of the data, in `.references`.

    Args:
        features: what the Frechet distance looks at; None measures nothing, but for `scm test` on
            images with captions, which then compares pixels, to score words. An extractor of
            images looks at every frame of a clip.
        kid: whether `scm test` measures the kernel distance, with torch-fidelity.
        precision_recall: whether it measures precision and recall, with torch-fidelity; minutes for
            50,000 samples.
        reference: folder or place of shards of images, to compare latents with the images that they
            were made from; None compares with the run's own data, decoded if they are latents.
    """

    def __init__(
        self,
        features: FeatureExtractor | None = None,
        kid: bool = True,
        precision_recall: bool = True,
        reference: str | None = None,
    ) -> None:
        self.features = features
        self.kid = kid
        self.precision_recall = precision_recall
        self.reference = reference
        self._against: tuple[Reference, ShardDataModule] | None = None
        self._sets: dict[str, SampleScores] = {}
        self._nfe: dict[str, int] = {}
        self._texts: list[tuple[int, str]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a test that measures nothing; leave out scores that the data cannot have.

        Raises:
            ValueError: if samples are to be tested and there is nothing to test them with.
        """
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, ShardDataModule):
            return
        index = datamodule.index
        has_words = index.captions and TEXT in index.conditions
        if self.features is None and stage == "test" and has_words and index.are_images:
            self.features, self.kid, self.precision_recall = PixelFeatures(), False, False
        if self.features is None:
            if stage == "test":
                raise ValueError(
                    "`scm test` measures nothing without metrics.features, got null; set "
                    "--metrics.features scm_lightning.metrics.DINOv2Features or InceptionFeatures, "
                    "or draw pictures with `scm predict`"
                )
            if stage == "validate":
                say(
                    "metrics.features is null, so that no distance is measured; `scm validate` "
                    "draws pictures alone"
                )
            return
        if self.features.only_images and datamodule.index.are_clips:
            self.features = ClipFeatures(self.features, datamodule.index.image_shape[1])
        if self.features.only_images and not datamodule.index.are_images and stage != "predict":
            if trainer.is_global_zero:
                name = f"{self.features.distance_name} and other scores are"
                warn(
                    f"{name} left out: {type(self.features).__name__} looks at images, "
                    f"(1, H, W) or (3, H, W), and the data have shape {datamodule.index.shape}; "
                    "set metrics.features to an extractor made for them"
                )
            self.features = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the samples of the last time."""
        self._sets, self._texts = {}, []

    on_test_epoch_start = on_validation_epoch_start

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
        if self.features is None:
            return
        datamodule = shards_of(trainer)
        if self._against is None:
            compared = self._data_to_compare_with(datamodule)
            data = training_data(compared, comparable=compared is datamodule)
            self._against = Reference(self.features, data, pl_module.device), compared
        reference, compared = self._against
        options = self._options(compared) if trainer.testing else ()
        self._texts += zip(batch.indices.tolist(), batch.prompts, strict=False)
        for name, samples in outputs.items():
            self._nfe[name] = samples.nfe
            fresh = SampleScores(reference, datamodule.to_images, *options)
            deviations = datamodule.collate.deviations(samples.x0, batch.conditions)
            drawn = self._sets.setdefault(name, fresh)
            drawn.update(batch.indices, samples.x0, batch.labels, deviations)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the distances."""
        for name, drawn in self._sets.items():
            drawn.sync(in_first_process)
            scores = drawn.compute() if trainer.is_global_zero else {}
            keys = drawn.reference.extractor.distances
            for key in keys:
                first = scores.get(key, Score(0.0, 0))
                value, num_samples = trainer.strategy.broadcast(first)
                gap = "_" if key[-1].isdigit() or len(keys) > 1 else ""
                pl_module.log(f"val/{key}{gap}{num_samples}_{name}", value)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table and write the file."""
        for drawn in self._sets.values():
            drawn.sync(in_first_process)
        texts = dict(pair for part in in_first_process(self._texts) for pair in part)
        if self._against is None or not trainer.is_global_zero:
            return
        datamodule, (reference, compared) = shards_of(trainer), self._against
        heldout = SampleScores(reference, None, *self._options(compared))
        _ = reference.statistics  # has a progress bar of its own
        scores: dict[str, dict[str, Score]] = {}
        with working("scores of the held-out data") as now:
            add_heldout(heldout, compared)
            for name, drawn in {"floor": heldout, **self._sets}.items():
                now(f"scores of {name}")
                scores[name] = drawn.compute()
        if texts and compared is datamodule:
            self._match_words(datamodule, {"floor": heldout, **self._sets}, texts, scores)
        measured = protocol(compared, heldout, scores, self._nfe, str(trainer.ckpt_path))
        content = metrics_content(measured, scores, self._nfe, datamodule.sample_seed)
        file = Path(trainer.default_root_dir) / "metrics.json"
        write_result(file, json.dumps(content, indent=2) + "\n")
        below = caption(heldout, any("deviation" in of_row for of_row in scores.values()))
        table = score_table(scores, self._nfe, reference.extractor, below)
        for each in filter(None, (table, word_table(scores, reference.extractor))):
            console().print(each, soft_wrap=False)
        say(f"written to {file}")
        distance = reference.extractor.distance_key
        log_numbers(
            trainer,
            {
                f"test/{kind}_{row}": score.value
                for row, of_row in scores.items()
                for kind, score in of_row.items()
            },
        )
        lines = report_sweep(file.parent, pl_module, scores, self._nfe, distance)
        for line in lines:
            say(line)
        if lines and (sweep := file.with_name("sweep.png")).is_file():
            log_picture(trainer, "test/sweep", sweep)

    def _match_words(
        self,
        datamodule: ShardDataModule,
        sets: Mapping[str, SampleScores],
        texts: Mapping[int, str],
        scores: Mapping[str, dict[str, Score]],
    ) -> None:
        """Add the scores of words, of held-out data beside samples."""
        reference = sets["floor"].reference
        captions = captions_of(datamodule, "train", len(reference.features))
        num_heldout = datamodule.index.splits["heldout"].num_samples
        own = dict(enumerate(captions_of(datamodule, "heldout", num_heldout)))
        for name, drawn in sets.items() if captions else ():
            scores[name].update(word_match(drawn, own if name == "floor" else texts, captions))

    def _options(self, compared: ShardDataModule) -> tuple[int, bool, bool, bool]:
        """Scores that `scm test` measures of a set beside one distance."""
        block_size = compared.index.splits["heldout"].num_samples
        return block_size, self.kid, self.precision_recall, True

    def _data_to_compare_with(self, datamodule: ShardDataModule) -> ShardDataModule:
        if self.reference is None:
            return datamodule
        compared = Shards(
            datamodule.sigma_data,
            self.reference,
            sample_batch_size=datamodule.sample_batch_size,
            sample_seed=datamodule.sample_seed,
            reading=datamodule.reading,
        )
        compared.prepare_data()
        compared.setup("test")
        shapes = [each.index.image_shape for each in (datamodule, compared)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"samples can be compared with images of their own shape only, {shapes[0]}, got "
                f"{shapes[1]} in {self.reference}; prepare the images at that size"
            )
        return compared


def add_heldout(scores: SampleScores, datamodule: ShardDataModule) -> None:
    """Add the held-out data to a set, numbered in their order."""
    count = 0
    for batch in datamodule.heldout_batches():
        scores.update(torch.arange(count, count + len(batch.x0)), batch.x0, batch.labels)
        count += len(batch.x0)


def training_data(datamodule: ShardDataModule, comparable: bool = True) -> TrainingData:
    """Training data, as a reference needs them.

    Args:
        datamodule: owner of the data.
        comparable: whether they are those that the run is trained on.
    """
    index = datamodule.index
    latents = index.latents
    content = {
        "shards": [shard.sha256 for shard in index.splits["train"].shards],
        "mean": index.mean,
        "std": index.std,
        "max_value": index.max_value,
        "latents": latents and asdict(latents),
        "seed_of_latents": latents and datamodule.shuffle_seed,  # of the draw from each posterior
    }
    num_samples = index.splits["train"].num_samples
    return TrainingData(
        batches=lambda: (batch.x0 for batch in datamodule.reference_batches()),
        to_images=datamodule.to_images,
        num_samples=num_samples,
        num_bytes=4 * num_samples * torch.Size(index.shape).numel(),
        sigma_data=datamodule.sigma_data,
        content=json.dumps(content),
        folder=None if is_remote(datamodule.root) else Path(datamodule.root),
        comparable=comparable,
    )
