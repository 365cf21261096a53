# SPDX-License-Identifier: Apache-2.0
"""Pictures of samples: while training, and as the result of `scm predict`."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL.Image import Image
from torch import Tensor

from scm_lightning.callbacks.logged_pictures import write_and_log
from scm_lightning.callbacks.run import SAMPLER_NAMES, shards_of
from scm_lightning.data import SampleRequest, ShardDataModule
from scm_lightning.data.pictures import are_clips, captioned_rows, image_grid, moving_rows
from scm_lightning.metrics.gathering import in_first_process
from scm_lightning.saying import say
from scm_lightning.whole_files import write_picture, written_whole

MAX_LOOKED_AT = 5000
"""Held-out data that are read to find classes."""


class SampleGrids(Callback):
    """Writes into the run's folder `samples/`.

    While training: `step_N.png` after every validation. From `scm predict`: `samples.npz`, all
    samples in data units with indices, labels, prompts and seed; then `NAME.png`, a grid of every
    sampler's images; `comparison.png`, the samplers under each other from the same noise, below
    held-out data of the same classes and the image that was given, if a condition is called
    `image`. Captions or prompts that samples are drawn by stand under them. Clips have `step_N.gif`
    and `comparison.gif` beside these. A picture that cannot be made is a line; the rest goes on.

    Args:
        columns: images in a row, or frames of clips.
    """

    def __init__(self, columns: int = 20) -> None:
        if columns < 1:
            raise ValueError(f"columns must be at least 1, got {columns}")
        self.columns = columns
        self._drawn: list[tuple[dict[str, Tensor], Sequence[str]]] = []
        self._seed = 0

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
            drawn = _given(trainer, batch)
            drawn |= {name: samples.x0 for name, samples in outputs.items()}
            shown = {name: x0[: self.columns] for name, x0 in drawn.items()}
            is_alone = trainer.state.fn == "validate"  # which knows of no step
            name = "validation" if is_alone else f"step_{trainer.global_step:07d}"
            file = self._folder(trainer) / f"{name}.png"
            prompts = batch.prompts[: self.columns]
            draw = partial(self._captioned, trainer, shown, prompts)
            is_drawn = write_and_log(trainer, "val/samples", file, draw)
            self._write_moving(trainer, shown, prompts, file)
            if is_drawn and is_alone:
                say(f"samples are drawn in {file}")

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
        drawn = _given(trainer, batch)
        drawn |= {name: samples.x0 for name, samples in outputs.items()}
        drawn = {name: x0.cpu() for name, x0 in drawn.items()}
        self._seed = batch.seed
        columns = {"indices": batch.indices.cpu(), **labels, **drawn}
        self._drawn.append((columns, batch.prompts))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write grids, the comparison and the samples of all processes, from the first one."""
        parts = [part for drawn in in_first_process(self._drawn) for part in drawn]
        self._drawn = []
        if not parts:
            return
        columns, prompts = _joined(parts)
        folder = self._folder(trainer)
        _write_samples(folder / "samples.npz", columns, prompts, self._seed)
        labels = columns.get("labels")
        samples = {name: x0 for name, x0 in columns.items() if name not in ("indices", "labels")}
        pictures = {name: partial(self._grid, trainer, x0, prompts) for name, x0 in samples.items()}
        pictures["comparison"] = partial(self._comparison, trainer, samples, labels, prompts)
        drawn = [
            write_and_log(trainer, f"predict/{name}", folder / f"{name}.png", draw)
            for name, draw in pictures.items()
        ]
        self._write_moving(trainer, samples, prompts, folder / "comparison.png")
        what = "samples and pictures are" if all(drawn) else "samples are"
        look = "; look at comparison.png first" if drawn[-1] else ""
        say(f"{what} in {folder}{look}")

    def _grid(self, trainer: Trainer, x0: Tensor, prompts: Sequence[str]) -> Image:
        # Few prompts that come again are a column each.
        columns = min(self.columns, len({*prompts}) or self.columns)
        return image_grid(shards_of(trainer).to_pictures(x0), columns, prompts)

    def _comparison(
        self,
        trainer: Trainer,
        samples: dict[str, Tensor],
        labels: Tensor | None,
        prompts: Sequence[str],
    ) -> Image:
        shown = {name: x0[: self.columns] for name, x0 in samples.items()}
        if shards_of(trainer).prompts is not None:  # of which there are no held-out data
            alone: Image = self._captioned(trainer, shown, prompts[: self.columns])
            return alone
        num = len(next(iter(shown.values())))
        asked_for = torch.zeros(num, dtype=torch.int64) if labels is None else labels[:num]
        real = heldout_of(shards_of(trainer), asked_for)
        picture: Image = self._captioned(trainer, {"floor": real} | shown, prompts[: self.columns])
        return picture

    def _write_moving(
        self, trainer: Trainer, samples: dict[str, Tensor], prompts: Sequence[str], file: Path
    ) -> None:
        """Write clips as they move beside a picture of their frames."""
        if are_clips(next(iter(samples.values()))):
            shown = {name: x0[: self.columns] for name, x0 in samples.items()}
            prompts = prompts[: self.columns]
            draw = partial(self._captioned, trainer, shown, prompts, moving=True)
            write_picture(file.with_suffix(".gif"), draw)

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "samples"

    def _captioned(
        self,
        trainer: Trainer,
        samples: dict[str, Tensor],
        prompts: Sequence[str],
        moving: bool = False,
    ) -> Any:
        datamodule = shards_of(trainer)
        named = {SAMPLER_NAMES.get(name, name): x0 for name, x0 in samples.items()}
        pictures = {name: datamodule.to_pictures(x0) for name, x0 in named.items()}
        return (moving_rows if moving else captioned_rows)(pictures, prompts)


def _given(trainer: Trainer, batch: SampleRequest) -> dict[str, Tensor]:
    """Images that samples are drawn by, as data; none of a data module of somebody else's."""
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, ShardDataModule):
        return {}
    return datamodule.collate.given(batch.conditions)


def heldout_of(datamodule: ShardDataModule, labels: Tensor) -> Tensor:
    """Held-out data of classes that are asked for, to stand beside samples of them.

    Args:
        datamodule: owner of the data.
        labels: the classes; of data without labels, zeros. (N,) int64.

    Returns:
        Data in the order of the labels, again from the first of a class where there are no more,
        and NaN where none is among the first `MAX_LOOKED_AT`. (N, ...), data units.
    """
    wanted = Counter(labels.tolist())
    found: dict[int, list[Tensor]] = {label: [] for label in wanted}
    num_looked_at = 0
    for batch in datamodule.heldout_batches():
        classes = torch.zeros(len(batch.x0)) if batch.labels is None else batch.labels
        for x0, label in zip(batch.x0, classes.tolist(), strict=True):
            if len(found.get(label, ())) < wanted[label]:
                found[label].append(x0)
        num_looked_at += len(batch.x0)
        is_complete = all(len(found[label]) == num for label, num in wanted.items())
        if is_complete or num_looked_at >= MAX_LOOKED_AT:
            break
    missing = [torch.full(datamodule.index.shape, torch.nan)]
    endless = {label: cycle(of_class or missing) for label, of_class in found.items()}
    return torch.stack([next(endless[label]) for label in labels.tolist()])


def _joined(
    parts: Sequence[tuple[dict[str, Tensor], Sequence[str]]],
) -> tuple[dict[str, Tensor], list[str]]:
    """Samples and prompts of all batches, in the order of their numbers."""
    order = torch.cat([columns["indices"] for columns, _ in parts]).argsort()
    names, prompts = parts[0][0], [prompt for _, own in parts for prompt in own]
    joined = {name: torch.cat([columns[name] for columns, _ in parts])[order] for name in names}
    return joined, [prompts[number] for number in order.tolist()] if prompts else []


def _write_samples(
    file: Path, columns: dict[str, Tensor], prompts: Sequence[str], seed: int
) -> None:
    """Write all samples, whole.

    Raises:
        OSError: if they cannot be written, with their size.
    """
    arrays: dict[str, Any] = {name: column.numpy() for name, column in columns.items()}
    arrays = {"labels": np.empty(0, np.float32), **arrays, "seed": np.array(seed)}
    arrays |= {"prompts": np.array(prompts)} if prompts else {}
    try:
        with written_whole(file) as beside, beside.open("wb") as opened:
            np.savez(opened, **arrays)
    except (OSError, ValueError) as error:  # a zip file that cannot be closed is a ValueError
        cause = error if isinstance(error, OSError) else error.__context__
        num_bytes = sum(array.nbytes for array in arrays.values())
        raise OSError(
            f"the samples {file} could not be written: {getattr(cause, 'strerror', cause)}, where "
            f"{num_bytes:,} bytes are needed; make room there, and draw them again"
        ) from error
