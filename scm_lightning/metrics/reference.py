# SPDX-License-Identifier: Apache-2.0
"""The training data that sets of samples are compared with, and what is kept of them.

Mean and covariance are those of all training images; the features of the first of them are kept
whole, for KID, precision and recall. Both are put into a file beside the shards, under a digest of
all that decides them, so that they are computed once.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scm_lightning.given_files import open_regular
from scm_lightning.metrics.features import INCEPTION_DISTANCE, FeatureExtractor, Features
from scm_lightning.metrics.frechet import Statistics, merged, moments, statistics_of
from scm_lightning.metrics.inception import InceptionFeatures
from scm_lightning.metrics.neighbours import nearest_distances
from scm_lightning.saying import counted
from scm_lightning.whole_files import written_whole

FOLDER = ".references"
MAX_FEATURES = 50_000
"""Images whose features are kept for KID, precision and recall."""
MAX_NEAREST_BYTES = 2**30
"""Size of data, in float32, up to which the nearest training image is looked for."""
FORMAT_VERSION = 1

ToImages = Callable[[Tensor], Tensor]
"""(B, ...) data units to (B, C, H, W) images in [0, 1]."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Training data, as a reference needs them.

    Args:
        batches: reads all of them, in batches, always in the same order. (B, ...) each, data units.
        to_images: (B, ...) data units to (B, C, H, W) images in [0, 1].
        num_samples: how many there are.
        num_bytes: their size in float32.
        sigma_data: their standard deviation, in data units.
        content: what decides the images, for example checksums of files.
        folder: folder to keep the reference in; None keeps it in memory only.
        comparable: whether samples are in the units of these data: latents are not, if they are
            compared with images.
    """

    batches: Callable[[], Iterable[Tensor]]
    to_images: ToImages
    num_samples: int
    num_bytes: int
    sigma_data: float
    content: str = ""
    folder: Path | None = None
    comparable: bool = True


class KeptFeatures(NamedTuple):
    """Statistics and features kept of a set of images.

    Attributes:
        statistics: of all of them.
        features: of the first of them. (N, num_features) float32.
    """

    statistics: Statistics
    features: Tensor


class Reference:
    """The data that sets of samples are compared with.

    Args:
        extractor: features that the distance is taken in.
        data: the training data.
        device: where to compute.

    Raises:
        ValueError: if another extractor than Inception calls its distance FID.
    """

    def __init__(
        self, extractor: FeatureExtractor, data: TrainingData, device: torch.device
    ) -> None:
        if extractor.distance_name == INCEPTION_DISTANCE and not isinstance(
            extractor, InceptionFeatures
        ):
            raise ValueError(
                f"only InceptionFeatures gives a {INCEPTION_DISTANCE}, got {extractor.description} "
                "with that distance_name; give the distance another name"
            )
        self.extractor = extractor.to(device)
        self.data = data
        self.device = device

    @torch.no_grad()
    def look(self, x0: Tensor, to_images: ToImages | None = None) -> Features:
        """Features of data or samples, in float32 on the CPU; NaN where those are not finite.

        Args:
            x0: data or samples. (B, ...), data units.
            to_images: makes images of them; None for what makes images of the training data.
        """
        with torch.autocast(self.device.type, enabled=False):
            images = (to_images or self.data.to_images)(x0.to(self.device))
            parts = torch.split(images, self.extractor.batch_size)
            looked = [self.extractor(part) for part in parts]
        features, logits = zip(*looked, strict=True)
        joined = None if logits[0] is None else torch.cat(logits).cpu()
        return Features(torch.cat(features).cpu(), joined).where_finite(x0)

    def nearest(self, x0: Tensor) -> Tensor | None:
        """Distances to the nearest training image, in units of sigma_data, on the CPU.

        Args:
            x0: samples. (B, ...), data units.

        Returns:
            (B,); or None if the data are too large to be held in memory, or not comparable.
        """
        if not self.has_nearest:
            return None
        distances = nearest_distances(x0.to(self.device), self._data, self.data.sigma_data)
        return distances.cpu()

    @property
    def has_nearest(self) -> bool:
        """Tell whether the data are comparable, and small enough to look for the nearest."""
        return self.data.comparable and self.data.num_bytes <= MAX_NEAREST_BYTES

    @property
    def statistics(self) -> Statistics:
        """Statistics of the features of all training images."""
        return self._kept.statistics

    @property
    def features(self) -> Tensor:
        """Features of the first training images. (N, num_features) float32, N <= MAX_FEATURES."""
        return self._kept.features

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides the features: images and extractor."""
        kind = type(self.extractor)
        deciding = {
            "content": self.data.content,
            "extractor": f"{kind.__module__}.{kind.__qualname__}",
            "description": self.extractor.description,
            "num_features": self.extractor.num_features,
            "max_features": MAX_FEATURES,
            "format_version": FORMAT_VERSION,
        }
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _data(self) -> Tensor:
        return torch.cat([x0.to(self.device) for x0 in self.data.batches()])

    @cached_property
    def _kept(self) -> KeptFeatures:
        if self.data.folder is None:
            return self._computed()
        file = self.data.folder / FOLDER / f"{self.digest}.safetensors"
        try:
            return read_kept(file)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except ValueError as error:
            logger.warning("%s; it is computed again", error)
        kept = self._computed()
        if kept.statistics.num_samples < self.data.num_samples:  # not the reference of whole data
            return kept
        try:
            write_kept(file, kept)
        except (OSError, SafetensorError) as error:
            logger.warning("the reference cannot be kept and is computed each time: %s", error)
        return kept

    def _computed(self) -> KeptFeatures:
        empty = torch.empty(0, self.extractor.num_features)
        whole, first, missing = moments(empty), [empty], MAX_FEATURES
        with counted("features of the training data", self.data.num_samples) as advance:
            for x0 in self.data.batches():
                features = self.look(x0).features
                whole = merged((whole, moments(features)))
                first.append(features[:missing])
                missing -= len(first[-1])
                advance(len(features))
        return KeptFeatures(statistics_of(whole), torch.cat(first))


def write_kept(file: Path, kept: KeptFeatures) -> None:
    """Write what is kept, so that the file is whole or not there.

    Raises:
        OSError: if the folder cannot be written.
    """
    tensors = {
        "mean": kept.statistics.mean,
        "cov": kept.statistics.cov,
        "features": kept.features.contiguous(),
    }
    num_samples = kept.statistics.num_samples
    metadata = {"num_samples": str(num_samples), "sha256": _checksum(num_samples, tensors)}
    with written_whole(file) as beside:
        save_file(tensors, beside, metadata=metadata)
        beside.chmod(0o644)  # safetensors lets nobody else read


def read_kept(file: Path) -> KeptFeatures:
    """Read what has been kept.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is damaged.
    """
    try:
        open_regular(file).close()  # a pipe in its place would block
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in ("mean", "cov", "features")}
            num_samples = int(metadata["num_samples"])
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"the reference {file} is damaged: {error}") from error
    if metadata.get("sha256") != _checksum(num_samples, tensors):
        raise ValueError(f"the reference {file} is damaged: its content has changed")
    return KeptFeatures(
        Statistics(tensors["mean"], tensors["cov"], num_samples), tensors["features"]
    )


def _checksum(num_samples: int, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(str(num_samples).encode())
    for name in sorted(tensors):
        digest.update(f" {name} {tensors[name].dtype} {tuple(tensors[name].shape)} ".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
