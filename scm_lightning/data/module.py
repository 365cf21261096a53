# SPDX-License-Identifier: Apache-2.0
"""The data module over a folder of shards: batches to train on, orders for samples to draw."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: on
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from scm_lightning.data.batch import Batch, SampleRequest
from scm_lightning.data.collate import Collate
from scm_lightning.data.degradation import Degradation
from scm_lightning.data.flips import check_flips
from scm_lightning.data.index import ShardIndex
from scm_lightning.data.latents import Autoencoder
from scm_lightning.data.loader import NumberedBatches, TrainingLoader
from scm_lightning.data.location import is_remote
from scm_lightning.data.mapped import MAX_MAPPED_BYTES, MappedBatches, map_split
from scm_lightning.data.prompts import read_prompts
from scm_lightning.data.reading import Reading
from scm_lightning.data.requests import Given, Prompt, RequestStream
from scm_lightning.data.samples import SplitSamples
from scm_lightning.data.stored_conditions import read_nulls
from scm_lightning.data.stream import Layout, StreamedBatches
from scm_lightning.given_files import given_path

NUM_PREDICT = 100
"""Samples drawn by `scm predict` where neither a number nor prompts are given."""


class ShardDataModule(LightningDataModule, ABC):
    """Data module over the shards of one folder, or of a place that webdataset can read from.

    Args:
        sigma_data: standard deviation that the data are scaled to. The path of the model owns the
            number; the command line passes it on.
        root: folder of the shards and their index, or a place; see `data/location.py`.
        batch_size: training samples per batch and process.
        sample_batch_size: samples drawn at a time in validation, test and predict.
        num_workers: loader processes; 0 loads in the training process.
        num_val_samples: samples drawn at every validation.
        num_test_samples: samples drawn by `scm test`.
        num_predict_samples: samples drawn by `scm predict`; None for one of each prompt, or 100
            without prompts. Prompts come again and again where there are fewer.
        sample_seed: seed of all drawn samples.
        shuffle_seed: seed of the order of the training data.
        use_labels: whether the classes are handed on; false for an unconditional model of data that
            have classes.
        horizontal_flip: whether every other training image, by chance, is mirrored left to right,
            with conditions that are maps or pictures of its size; classes and texts stay.
            EDM's whole augmentation, whose network is told, is an option of the teacher's module.
        conditions: names of the conditions that are handed on; None for all that the shards hold.
        degradation: further conditions, which are computed of the data.
        prompts: text file with a prompt in each line, by which `scm predict` draws; one of each at
            least. They are encoded as the captions of the data were.
        text_encoder: folder of the encoder of prompts; None for the one in the index.
        reading: how shards are read, and what is done with damaged ones.
        autoencoder: folder or name of the autoencoder of latents; None for the one in the index.
        prepared_by: command that writes the shards, which is named where they are missing.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        sigma_data: float,
        root: str,
        batch_size: int = 128,
        sample_batch_size: int = 500,
        num_workers: int = 0,
        num_val_samples: int = 500,
        num_test_samples: int = 2000,
        num_predict_samples: int | None = None,
        sample_seed: int = 0,
        shuffle_seed: int = 0,
        use_labels: bool = True,
        horizontal_flip: bool = False,
        conditions: list[str] | None = None,
        degradation: Degradation | None = None,
        prompts: str | None = None,
        text_encoder: str | None = None,
        reading: Reading = Reading(),
        autoencoder: str | None = None,
        prepared_by: str = "scm prepare",
    ) -> None:
        super().__init__()
        if min(batch_size, sample_batch_size) < 1 or num_workers < 0:
            raise ValueError(
                f"batch sizes must be at least 1 and workers at least 0, got batch_size "
                f"{batch_size}, sample_batch_size {sample_batch_size}, num_workers {num_workers}"
            )
        num_predict = NUM_PREDICT if num_predict_samples is None else num_predict_samples
        if min(num_val_samples, num_test_samples, num_predict) < 1 or sample_seed < 0:
            raise ValueError(
                f"numbers of samples must be at least 1 and the seed at least 0, got "
                f"{num_val_samples}, {num_test_samples}, {num_predict} and {sample_seed}"
            )
        self.sigma_data = sigma_data
        self.root = given_path(root)
        self.batch_size = batch_size
        self.sample_batch_size = sample_batch_size
        self.num_workers = num_workers
        self.num_samples = {
            "val": num_val_samples,
            "test": num_test_samples,
            "predict": num_predict,
        }
        self.sample_seed = sample_seed
        self.shuffle_seed = shuffle_seed
        self.use_labels = use_labels
        self.horizontal_flip = horizontal_flip
        self.conditions = conditions
        self.degradation = degradation
        self.prompts, self.text_encoder = prompts, text_encoder
        self._one_of_each = num_predict_samples is None
        self.reading = reading
        self.autoencoder = None if autoencoder is None else given_path(autoencoder)
        self.prepared_by = prepared_by

    @abstractmethod
    def prepare_data(self) -> None:
        """Make the shards if they are not there; called in one process."""

    def setup(self, stage: str) -> None:
        """Read the index.

        Raises:
            ValueError: if it or a shard is missing or damaged, there is a name that no condition
                has, the data cannot be mirrored, or there is an autoencoder for data that are no
                latents.
        """
        self.index = ShardIndex.read(self.root)
        if damage := self.index.damage(self.root):
            more = f" and {len(damage) - 1} more" if len(damage) > 1 else ""
            raise ValueError(f"{damage[0]}{more}; remove {self.root} and prepare it again")
        if self.conditions is not None:
            self.index = self.index.with_conditions(self.conditions)
        if self.horizontal_flip:
            check_flips(self.index)
        if self.autoencoder is not None and self.index.latents is None:
            raise ValueError(
                f"autoencoder decodes latents, but {self.root} holds no latents of one, got "
                f"{self.autoencoder}; leave it out"
            )
        self.collate = Collate(
            self.index,
            self.sigma_data,
            self.use_labels,
            self.shuffle_seed,
            degradation=self.degradation,
            nulls=read_nulls(self.root, self.index.conditions),
        )
        self.condition_shapes = self.collate.condition_shapes()
        self.samples = {
            name: SplitSamples(self.root, self.index, name, self.reading.verify == "once")
            for name in self.index.splits
        }

    @property
    def num_classes(self) -> int:
        """Classes that are handed on; 0 without labels."""
        return self.index.num_classes if self.use_labels else 0

    def train_dataloader(self) -> TrainingLoader:
        """`Batch`es of the training split: an epoch is a pass, and a state its position.

        Raises:
            ValueError: if a batch is larger than the split, or the data are damaged.
        """
        num_samples = self.index.splits["train"].num_samples
        if self.batch_size > num_samples:
            raise ValueError(
                f"batch_size must be at most the {num_samples} training samples of {self.root}, "
                f"got {self.batch_size}; to train on the same samples again within a step, "
                "accumulate batches"
            )
        rank, world_size = self._process()
        collate = replace(self.collate, horizontal_flip=self.horizontal_flip)
        batches = self._training_batches(collate, rank, world_size)
        return TrainingLoader(
            batches,
            self.batch_size,
            world_size,
            1 if self.trainer is None else self.trainer.accumulate_grad_batches,
            self.num_workers,
            self.reading.start_method,
        )

    def val_dataloader(self) -> DataLoader[SampleRequest]:
        """Orders for the samples of a validation."""
        return self._request_loader("val")

    def test_dataloader(self) -> DataLoader[SampleRequest]:
        """Orders for the samples of a test."""
        return self._request_loader("test")

    def predict_dataloader(self) -> DataLoader[SampleRequest]:
        """Orders for the samples of a prediction."""
        return self._request_loader("predict")

    def reference_batches(self) -> Iterator[Batch]:
        """All training data, once: what samples are compared with."""
        return self._batches("train")

    def heldout_batches(self) -> Iterator[Batch]:
        """All held-out data, once: what real data score in place of samples."""
        return self._batches("heldout")

    def to_images(self, x0: Tensor) -> Tensor:
        """Make images to look at and to measure. (B, *shape) data units to [0, 1]."""
        arrays = self.index.data_to_arrays(x0, self.sigma_data)
        if self.index.latents is None:
            return self.index.pixels_to_images(arrays)
        return self._decoder.decode(arrays)

    def to_pictures(self, x0: Tensor) -> Tensor:
        """Make pictures, also of data that are not images.

        Bytes are pixels. For other numbers, gray is the mean of the channel, and black and white
        are two standard deviations below and above. (B, *shape) data units to [0, 1].
        """
        if self.index.shows_pixels or self.index.latents is not None:
            return self.to_images(x0)
        return (0.5 + x0.float() / (4 * self.sigma_data)).clamp(0, 1)

    def keys(self, indices: Tensor) -> list[str]:
        """Names of training samples, `SHARD/KEY`, to find them by. (B,) numbers in the split."""
        return [self.samples["train"].key(index) for index in indices.tolist()]

    @cached_property
    def _decoder(self) -> Autoencoder:
        assert self.index.latents is not None
        return Autoencoder.of(self.index.latents, self.autoencoder)

    def _training_batches(self, collate: Collate, rank: int, world_size: int) -> NumberedBatches:
        mapped = self.reading.mapped
        if mapped is None:
            small = self.index.num_stored_bytes <= MAX_MAPPED_BYTES
            mapped = small and not is_remote(self.root)
        if mapped:
            split = map_split(self.samples["train"])
            return MappedBatches(
                split, collate, self.batch_size, self.shuffle_seed, rank, world_size
            )
        layout = Layout(
            self.batch_size,
            rank,
            world_size,
            max(self.num_workers, 1),
            self.reading.shuffle_buffer,
            self.shuffle_seed,
        )
        return StreamedBatches(self.samples["train"], collate, layout)

    def _batches(self, split: str) -> Iterator[Batch]:
        """All samples of a split, in their order."""
        numbered = enumerate(self.samples[split])
        while chunk := list(itertools.islice(numbered, self.sample_batch_size)):
            indices = [number for number, _ in chunk]
            yield self.collate.samples([sample for _, sample in chunk], indices, indices)

    def _request_loader(self, stage: str) -> DataLoader[SampleRequest]:
        prompts = self._prompts() if stage == "predict" else []
        num_samples = 0 if prompts and self._one_of_each else self.num_samples[stage]
        requests = RequestStream(
            max(num_samples, len(prompts)),
            self.num_classes,
            self.sample_batch_size,
            self.index.shape,
            self.sample_seed,
            *self._process(),
            self._given(prompts),
        )
        return DataLoader(requests, batch_size=None)

    def _prompts(self) -> list[Prompt]:
        if self.prompts is None:
            return []
        return read_prompts(self.prompts, self.index, self.text_encoder)

    def _given(self, prompts: Sequence[Prompt]) -> Given | None:
        """Conditions that samples are drawn by; None if there are none."""
        if not self.condition_shapes and not prompts:
            return None
        if not len(self.samples["heldout"]):
            raise ValueError(
                f"samples are drawn by the conditions of held-out data, of which {self.root} has "
                "none; prepare it with some held out"
            )
        collate = replace(self.collate, seed=self.sample_seed)
        return Given(self.samples["heldout"], collate, prompts)

    def _process(self) -> tuple[int, int]:
        """Rank and number of processes; one process outside a trainer."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
