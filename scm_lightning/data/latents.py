# SPDX-License-Identifier: Apache-2.0
r"""Latents: an autoencoder between images and the data that a network is trained on.

    image y in [0, 1]    m, log s^2 = encoder(2 y - 1)         the posterior N(m, s^2)
    latent z             z = m, or z = m + s n, n ~ N(0, 1)     drawn when a batch is made
    data x0              x0 = (z - mean) sigma_data / std       per channel, see `index.py`
    back                 y = (decoder(z) + 1) / 2, clipped to [0, 1]

The autoencoder is diffusers' AutoencoderKL, frozen. Its `scaling_factor` and `shift_factor` are not
applied: mean and std of the index take their place.
Trap: the paper gives images in [-1, 1] to sd-vae-ft-mse, as above; EDM2 gives it y itself, in
[0, 1], so their latents and statistics differ. The index says which: `pixels`.
Source: arXiv 2410.11081, Appendix G. Axes: B batch; C, H, W of images; c, h, w of latents.
"""

import hashlib
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scm_lightning.data.index import Latents
from scm_lightning.given_files import given_path

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
HUB_NAME = r"[\w][\w.-]*/[\w][\w.-]*"
CHUNK_PIXELS = 2**20
"""Pixels that are decoded at once: 4 images of 512x512, 1024 of 32x32."""


class Autoencoder:
    """A frozen AutoencoderKL and the images it is used for.

    Args:
        name: folder with `config.json` and `diffusion_pytorch_model.safetensors`, or the name of a
            repository of the Hugging Face hub, `OWNER/NAME`, which is downloaded into the cache of
            huggingface_hub, or taken from there.
        image_shape: shape of the images. (C, H, W).
        pixels: what it is given: `signed`, images in [-1, 1], or `unit`, in [0, 1].

    Attributes:
        latent_shape: shape of a latent. (c, h, w).
        weights_sha256: checksum of the file of weights; of a repository, the one the hub shows.

    Raises:
        ValueError: if diffusers is not installed, the autoencoder cannot be read, or it cannot take
            such images.
    """

    def __init__(self, name: str, image_shape: tuple[int, ...], pixels: str = "signed") -> None:
        model_class = _model_class()
        name = given_path(name)
        folder = _folder(name)
        self.name, self.image_shape, self.pixels = name, image_shape, pixels
        self._black = -1.0 if pixels == "signed" else 0.0
        self.weights_sha256 = _sha256(folder / WEIGHTS_FILE)
        try:
            model = model_class.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,  # else a warning where accelerate is not installed
            )
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"{folder} must hold diffusers' AutoencoderKL: {error}; give its folder, as "
                "save_pretrained writes it"
            ) from error
        self.model: Any = model.eval().requires_grad_(False)
        self.latent_shape = self._latent_shape()

    @staticmethod
    def of(latents: Latents, path: str | None = None) -> "Autoencoder":
        """Load the autoencoder of an index.

        Args:
            latents: what the index says of it.
            path: folder or name to take in place of the one in the index.

        Raises:
            ValueError: if its weights are not those that made the latents, or as the class does.
        """
        name = latents.autoencoder if path is None else path
        found = Autoencoder(name, latents.image_shape, latents.pixels)
        if found.weights_sha256 != latents.weights_sha256:
            raise ValueError(
                f"the weights of {found.name} must be those that made the latents, of SHA-256 "
                f"{latents.weights_sha256}, got {found.weights_sha256}; give the autoencoder's "
                "folder or name, or prepare the latents again"
            )
        return found

    @torch.no_grad()
    def encode(
        self, images: Tensor, compute_dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Posteriors of images.

        Args:
            images: images, values in [0, 1]. (B, C, H, W).
            compute_dtype: type that convolutions compute in, by autocast if it is not float32.

        Returns:
            Mean and standard deviation. (B, c, h, w) each, float32, on the device of the images.
        """
        assert images.shape[1:] == self.image_shape, "the index says the shape of the images"
        x = (1.0 - self._black) * images.float() + self._black
        x = x.expand(-1, self.model.config["in_channels"], -1, -1)
        with (
            _exact(),
            torch.autocast(x.device.type, compute_dtype, enabled=compute_dtype != torch.float32),
        ):
            posterior = self.model.to(x.device).encode(x).latent_dist
        return posterior.mean.float(), posterior.std.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, in chunks of bounded memory, on the device of the latents.

        Args:
            latents: latents as the encoder makes them. (B, c, h, w).

        Returns:
            Images, values clipped to [0, 1]. (B, C, H, W), float32.
        """
        assert latents.shape[1:] == self.latent_shape, "data_to_arrays keeps the shape"
        model = self.model.to(latents.device)
        size = max(1, CHUNK_PIXELS // (self.image_shape[1] * self.image_shape[2]))
        decoded = []
        with _exact(), torch.autocast(latents.device.type, enabled=False):
            for chunk in torch.split(latents.float(), size):
                images = model.decode(chunk).sample
                if images.shape[1] != self.image_shape[0]:
                    images = images.mean(dim=1, keepdim=True)
                scale = 1.0 / (1.0 - self._black)
                decoded.append((scale * images - scale * self._black).clamp(0, 1))
        return torch.cat(decoded)

    def _latent_shape(self) -> tuple[int, ...]:
        """Shape of a latent of the images, if the autoencoder can take them."""
        config = self.model.config
        channels, shrink = config["in_channels"], 2 ** (len(config["block_out_channels"]) - 1)
        C, H, W = self.image_shape
        if C not in (1, channels) or config["out_channels"] != channels:
            raise ValueError(
                f"{self.name} is for images of {channels} channels, which one channel can be "
                f"repeated to, got {C}; prepare images of other channels, or give another "
                "autoencoder"
            )
        if H % shrink or W % shrink:
            raise ValueError(
                f"images for {self.name} must have sides that {shrink} divides, got {H}x{W}; "
                "prepare another size"
            )
        return (config["latent_channels"], H // shrink, W // shrink)


def _model_class() -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ValueError(
            "latents need diffusers, which is not installed; run in the clone "
            'pip install -c constraints.txt ".[latents]"'
        ) from error
    return AutoencoderKL


def _folder(name: str) -> Path:
    """Folder of an autoencoder's files; downloaded, if it is one of the hub."""
    folder = Path(name)
    if not folder.is_dir() and re.fullmatch(HUB_NAME, name):
        from huggingface_hub import snapshot_download  # comes with diffusers

        try:
            files = snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE])
        except (OSError, ValueError) as error:
            line = str(error).splitlines()[0]
            raise ValueError(
                f"{name} must be a folder with an autoencoder or one of the hub, which says: "
                f"{line}; give its folder"
            ) from error
        folder = Path(files)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise ValueError(
                f"the autoencoder {name} must hold {file}, which is missing; give a folder that "
                "save_pretrained wrote, or a name on the hub"
            )
    return folder


def _sha256(file: Path) -> str:
    """Checksum of a file."""
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _exact() -> AbstractContextManager[None]:
    """Convolutions that give the same numbers every time, and none in TF32."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
