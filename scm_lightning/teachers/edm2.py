# SPDX-License-Identifier: Apache-2.0
r"""Networks of EDM2 as teachers, from the files that NVIDIA published.

    edm2-img64-s-1073741-0.075.pkl            SIZE-THOUSAND_IMAGES-SIGMA_REL of the average
    edm2-img64-xs-uncond-2147483-0.015.pkl    trained without classes: what guides the others

Networks of ImageNet 512 are of latents x0 = (z - mean) sigma_data / std, and their autoencoder is
given images in [0, 1], where the paper's is given [-1, 1]: other latents, other statistics.
Source: Karras et al., arXiv 2312.02696 and 2406.02507; NVlabs/edm2, training/networks_edm2.py.
Axes: B batch, C channels, H and W pixels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from scm_lightning.given_files import given_path
from scm_lightning.storage.persistent_pickle import PersistentFile, read_persistent
from scm_lightning.teachers.edm2_maps import edm2_unet
from scm_lightning.teachers.unconditional import ClassTeacher

LICENCE = "CC BY-NC-SA 4.0"
NOISE_RANGE = (0.002, 80.0)
"""Sigmas of EDM2's own sampler, which its networks were trained around. Data units."""
SAME = 0.05
"""Largest difference of statistics of latents that are the same, in standard deviations."""
PROFILE = re.compile(r".*-(\d{7})-(\d\.\d{3})\.pkl")


@dataclass(frozen=True)
class LatentsOfTeacher:
    """Latents that a teacher was trained on.

    Attributes:
        autoencoder: its name on the Hugging Face hub; it is given images in [0, 1].
        mean: mean to subtract, per channel.
        std: standard deviation to divide by, per channel.
    """

    autoencoder: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, file: PersistentFile, sigma_data: float) -> "LatentsOfTeacher | None":
        """Latents that the encoder of a file is for; None for one of images.

        Raises:
            ValueError: if it says something else; the message is the reason alone.
        """
        encoder = file.encoder
        if encoder is None or "vae_name" not in encoder.state:
            return None
        scale, bias = (encoder.attribute(name) for name in ("scale", "bias"))
        if not (isinstance(scale, Tensor) and isinstance(bias, Tensor)) or scale.ndim != 1:
            raise ValueError("its encoder has no scale and bias for each channel")
        return cls(
            str(encoder.attribute("vae_name")),
            tuple(round(each, 4) for each in (-bias / scale).tolist()),
            tuple(round(each, 4) for each in (sigma_data / scale).tolist()),
        )

    def misfit(self, mean: Sequence[float], std: Sequence[float]) -> str:
        """Say in one clause why latents of such statistics are others; empty if they are these.

        Args:
            mean: mean that is subtracted from a latent of the data, per channel.
            std: standard deviation that it is divided by, per channel.
        """
        is_same = len(mean) == len(self.mean) and all(
            abs(m - own_m) < SAME * own_std and abs(s - own_std) < SAME * own_std
            for m, s, own_m, own_std in zip(mean, std, self.mean, self.std, strict=True)
        )
        if is_same:
            return ""
        found = ", ".join(f"{each:.3g}" for each in mean)
        return (
            f"it is {self.described()}, and the data's have mean {found}; prepare such latents, or "
            "take its weights as a start alone, with `init` of a DiffusionModule"
        )

    def described(self) -> str:
        """One clause: which latents it takes."""
        mean, std = (", ".join(f"{each:g}" for each in given) for given in (self.mean, self.std))
        return (
            f"of latents of {self.autoencoder} for images in [0, 1], with mean {mean} and std {std}"
        )


class EDM2Teacher(ClassTeacher):
    """Network of EDM2: `teacher: {class_path: EDM2Teacher, init_args: {path: FILE}}`.

    Args:
        path: a .pkl file as published.
        unconditional: a second such file, of a network without classes (`-uncond`), that stands for
            no class in guidance: EDM2's networks were never trained without one. None refuses
            guidance.

    Attributes:
        network: the package's own network with the same F.
        latents: of what it was trained on; None for images.

    Raises:
        ValueError: if a file is no such network.
    """

    def __init__(self, path: str, unconditional: str | None = None) -> None:
        path = given_path(path)
        file = read_persistent(path)
        try:
            if file.ema.class_name != "Precond":
                raise ValueError(f"its class is {file.ema.class_name}, not Precond")
            network = edm2_unet(file.ema, is_trigflow=False)
            sigma_data = float(file.ema.attribute("sigma_data"))
            latents = LatentsOfTeacher.of(file, sigma_data)
        except ValueError as error:
            raise ValueError(
                f"{path} must be a network of EDM2: {error}; give one of its files edm2-*.pkl"
            ) from error
        super().__init__(
            f"EDM2 {source_of(path)}",
            network.data_shape,
            None if unconditional is None else EDM2Teacher(unconditional),
            num_classes=network.conditioning.num_classes,
            noise_range=NOISE_RANGE,
            sigma_data=sigma_data,
            licence=LICENCE,
        )
        self.network, self.latents = network.eval(), latents

    def F_of_class(self, u: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """See `ClassTeacher`."""
        F: Tensor = self.network(u, t, labels)
        return F

    def own_network(self) -> nn.Module:
        """See `SourceTeacher`."""
        return self.network

    def latents_misfit(self, mean: Sequence[float], std: Sequence[float]) -> str:
        """See `SourceTeacher`."""
        if self.latents is None:
            return f"{self.source} is of images, the data are latents; give it prepared images"
        return self.latents.misfit(mean, std)

    def described(self) -> str:
        """One line, with the latents that it takes."""
        return "; ".join(
            [super().described(), *([] if self.latents is None else [self.latents.described()])]
        )


def source_of(path: str) -> str:
    """Name of a file, with what it says of the average: `a.pkl (sigma_rel 0.05 at ...)`."""
    name = Path(path).name
    if profile := PROFILE.fullmatch(name):
        images = int(profile[1]) / 1000
        return f"{name} (sigma_rel {profile[2]} at {images:,.4g} million images)"
    return name
