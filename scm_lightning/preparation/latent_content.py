# SPDX-License-Identifier: Apache-2.0
r"""Content of a shard whose data are latents: the posterior of an autoencoder.

    stored = m, or (m, s)                 the posterior N(m, s^2), see `latents.py`
    mean   = E[m]                         over the training split, per channel
    std^2  = E[m^2] - mean^2, or E[m^2 + s^2] - mean^2      those of the latents that are drawn

The paper's mean and std may replace the measured ones; they belong to sd-vae-ft-mse, and to no
other autoencoder, on ImageNet with images in [-1, 1].
Source: arXiv 2410.11081, Appendix G. Axes: N images; C, H, W of images; c, h, w of latents.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from scm_lightning.data.index import Latents
from scm_lightning.data.latents import Autoencoder
from scm_lightning.data.shards import Array
from scm_lightning.preparation.content import Moments, ShardContent

PAPER_STATISTICS = ([1.56, -0.695, 0.483, 0.729], [5.27, 5.91, 4.21, 4.31])
"""Mean and std per channel of the latents of sd-vae-ft-mse on ImageNet, images in [-1, 1]."""
EDM2_STATISTICS = ([5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28])
"""The same of images in [0, 1], EDM2's."""


class EncodedLatents(ShardContent):
    """The posteriors that an autoencoder gives for images: their means, or means and deviations.

    Args:
        autoencoder: the autoencoder.
        stored: `mean`, or `mean_std`, of which a sample is drawn whenever a batch is made.
        batch_size: images encoded at once.
        dtype: type of the stored arrays.
        compute_dtype: type of the encoder's activations.
        device: where the encoder runs. Shards of different devices differ in the last bits.

    Raises:
        ValueError: if an argument is out of range, or there is no such device.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        stored: Literal["mean", "mean_std"] = "mean_std",
        batch_size: int = 32,
        dtype: Literal["float16", "float32"] = "float16",
        compute_dtype: Literal["float32", "bfloat16"] = "float32",
        device: str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"latents must be encoded at least 1 at a time, got {batch_size}")
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"latents must be encoded on a device of this machine, got {device}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        self.autoencoder, self.stored, self.device = autoencoder, stored, device
        self.compute_dtype = getattr(torch, compute_dtype)
        self.shape = autoencoder.latent_shape
        parts = 2 if stored == "mean_std" else 1
        self.stored_shape = (parts * self.shape[0], *self.shape[1:])
        self.dtype: str = dtype
        self.batch_size = batch_size
        self.latents = Latents(
            autoencoder.name,
            autoencoder.weights_sha256,
            autoencoder.image_shape,
            stored,
            autoencoder.pixels,
        )
        self.settings: Mapping[str, Any] = {
            "latents_weights": autoencoder.weights_sha256,
            "latents_stored": stored,
            "latents_batch_size": batch_size,
            "latents_compute_dtype": compute_dtype,
            "device": torch.device(device).type,
        }
        if autoencoder.pixels != "signed":
            self.settings = {**self.settings, "latents_pixels": autoencoder.pixels}

    def encode(self, images: Array) -> Array:
        """Encode. (N, C, H, W) uint8 pixels to (N, *stored_shape) `dtype`.

        Raises:
            ValueError: if a latent is not finite in `dtype`.
        """
        pixels = torch.from_numpy(images).to(self.device)
        mean, std = self.autoencoder.encode(pixels.float() / 255.0, self.compute_dtype)
        parts = [mean, std] if self.stored == "mean_std" else [mean]
        with np.errstate(over="ignore"):
            stored: Array = torch.cat(parts, dim=1).cpu().numpy().astype(self.dtype)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"latents must be finite in {self.dtype}, got others from "
                f"{self.autoencoder.name}; store or compute them in float32"
            )
        return stored

    def moments(self, stored: Array) -> Moments:
        """Sums of the latents that are drawn from what is stored. (N, *stored_shape)."""
        numbers = stored.astype(np.float64).swapaxes(0, 1).reshape(stored.shape[1], -1)
        mean, std = numbers[: self.shape[0]], numbers[self.shape[0] :]
        squares = (mean**2).sum(axis=1)
        if self.stored == "mean_std":
            squares += (std**2).sum(axis=1)
        return Moments(mean.shape[1], mean.sum(axis=1).tolist(), squares.tolist())


def paper_statistics(
    latent_shape: tuple[int, ...], latents: Latents | None = None
) -> tuple[list[float], list[float]]:
    """Mean and std per channel of sd-vae-ft-mse's latents of ImageNet.

    Args:
        latent_shape: shape of a latent. (c, h, w).
        latents: what they are of; None for images in [-1, 1].

    Source: arXiv 2410.11081, Appendix G; of unit ones, arXiv 2312.02696, and its files.

    Raises:
        ValueError: if latents have another number of channels.
    """
    mean, std = PAPER_STATISTICS
    if latents is not None and latents.pixels == "unit":
        mean, std = EDM2_STATISTICS
    if latent_shape[0] != len(mean):
        raise ValueError(
            f"the paper's normalization is that of the {len(mean)} channels of sd-vae-ft-mse, got "
            f"latents of {latent_shape[0]}; normalize by what is measured"
        )
    return mean, std
