# SPDX-License-Identifier: Apache-2.0
"""Teachers from the original files of DiT and SiT, `DiT-XL-2-256x256.pt` and their like.

    DiT    eps of x_n = a_n x0 + s_n eps, 1000 steps of linear variances from 1e-4 to 2e-2
    SiT    x0 - eps of x = tau x0 + (1 - tau) eps, so that tau = 1 - s of rectified flow

Both were trained on latents of Stable Diffusion's autoencoder, times 0.18215.
Source: facebookresearch/DiT and willisma/SiT for the names of the tensors.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scm_lightning.core import (
    DiscreteProcess,
    Process,
    RectifiedFlowProcess,
    TrigFlow,
    linear_alphas_bar,
)
from scm_lightning.given_files import ARCHIVE, given_path, open_regular, refuse_others
from scm_lightning.storage.archive import load_tensors
from scm_lightning.teachers.adapted import AdaptedTeacher
from scm_lightning.teachers.dit_network import DiTSizes, OriginalDiT

LATENT_SCALE = 0.18215
"""Factor of the autoencoder's latents in their data."""
ALIKE = 0.01
"""Largest difference, in shares, of statistics of latents that are the same."""
NUM_NAMED = 3
"""Most weights that a message names."""


class _OriginalTeacher(AdaptedTeacher):
    """Part of both: the file, the network, and the latents they were trained on."""

    def __init__(
        self, path: str, network: OriginalDiT, process: Process, data_scale: float, **said: Any
    ) -> None:
        low, high = said.pop("noise_range", (0.0, float("inf")))
        kind = type(self).__name__.removesuffix("Teacher")
        super().__init__(
            network,
            process,
            noise_range=(low, high),
            num_classes=network.num_classes,
            data_scale=data_scale,
            source=f"{kind} {Path(path).name}",
            **said,
        )

    def latents_misfit(self, mean: Sequence[float], std: Sequence[float]) -> str:
        """See `SourceTeacher`."""
        unit = self.path.sigma_data / (self.data_scale * LATENT_SCALE)
        if all(abs(m) <= ALIKE * unit for m in mean) and all(
            abs(s / unit - 1) <= ALIKE for s in std
        ):
            return ""
        return (
            f"{self.source} takes latents times {LATENT_SCALE}: mean 0 and std {unit:.5g} in every "
            f"channel at sigma_data {self.path.sigma_data:g} and data_scale {self.data_scale:g}, "
            f"got mean {mean[0]:.5g} and std {std[0]:.5g} in channel 0; set mean and std of "
            "index.json"
        )


class DiTTeacher(_OriginalTeacher):
    """A pretrained DiT, which predicts the noise.

    Args:
        path: DiT-XL-2-256x256.pt, DiT-XL-2-512x512.pt, or weights alone of another size.
        num_heads: attention heads; None for those of the published widths.
        data_scale: factor from the data that it was trained on to those of the run.
        licence: licence of its weights.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is of another kind, or of another network.
    """

    def __init__(
        self,
        path: str,
        num_heads: int | None = None,
        data_scale: float = 1.0,
        licence: str = "CC BY-NC 4.0",
    ) -> None:
        process = DiscreteProcess(TrigFlow(1.0), linear_alphas_bar())
        ends = torch.tensor(process.log_ratios)[[0, -1]].double().exp()
        network = read_dit(path, num_heads)
        super().__init__(
            path, network, process, data_scale, licence=licence, noise_range=tuple(ends.tolist())
        )


class SiTTeacher(_OriginalTeacher):
    """A pretrained SiT, which predicts the velocity of a flow: nothing small divides its error.

    Args:
        path: SiT-XL-2-256x256.pt, or weights alone of another size.
        num_heads: attention heads; None for those of the published widths.
        data_scale: factor from the data that it was trained on to those of the run.
        licence: licence of its weights.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is of another kind, or of another network.
    """

    def __init__(
        self,
        path: str,
        num_heads: int | None = None,
        data_scale: float = 1.0,
        licence: str = "MIT",
    ) -> None:
        network = read_dit(path, num_heads, from_noise=True)
        process = RectifiedFlowProcess(TrigFlow(1.0))
        super().__init__(path, network, process, data_scale, licence=licence, sign=-1.0)


def read_dit(
    path: str | os.PathLike[str], num_heads: int | None = None, from_noise: bool = False
) -> OriginalDiT:
    """Read a network of DiT or SiT, without running code from the file.

    Args:
        path: file of torch.save with its weights by name.
        num_heads: attention heads; None for those of the published widths.
        from_noise: see `OriginalDiT`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is of another kind, damaged, or of another network.
    """
    file = Path(given_path(path))
    tensors = _weights(file)
    try:
        sizes = DiTSizes.of(tensors, num_heads)
        with torch.device("meta"):
            network = OriginalDiT(sizes, from_noise)
        _check_alike(tensors, network.state_dict())
    except ValueError as error:
        raise ValueError(
            f"{file} must hold the weights of a DiT by their published names: {error}; give such a "
            "file, and num_heads for a width of your own"
        ) from error
    network.load_state_dict(tensors, assign=True)
    return network


def _weights(file: Path) -> dict[str, Tensor]:
    """Weights by name, float32 or wider."""
    with open_regular(file) as opened:
        refuse_others(file, opened, ARCHIVE)
        try:
            content = load_tensors(opened)
        except ValueError as error:
            advice = "download it again"
            if "argparse.Namespace" in str(error):  # as DiT's and SiT's train.py writes
                advice = (
                    "it is a checkpoint of train.py, which holds its arguments too: where you "
                    "trust it, save what torch.load(FILE, weights_only=False)['ema'] gives"
                )
            raise ValueError(
                f"{file} must be weights alone, whole, got what can't be read without running code "
                f"from it, or is damaged: {error}; {advice}"
            ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(each, Tensor) for name, each in content.items()
    ):
        raise ValueError(
            f"{file} must be weights by name, got a {type(content).__name__} of other things; save "
            "the network's state_dict() alone"
        )
    half = (torch.float16, torch.bfloat16)
    return {name: each.float() if each.dtype in half else each for name, each in content.items()}


def _check_alike(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Refuse weights that are missing, too many, or of other shapes; the message is the reason."""
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is not known" for name in tensors if name not in own]
    wrong += [
        f"{name} has shape {list(tensors[name].shape)} for {list(each.shape)}"
        for name, each in own.items()
        if name in tensors and tensors[name].shape != each.shape
    ]
    if wrong:
        more = f", and {len(wrong) - NUM_NAMED} more" if len(wrong) > NUM_NAMED else ""
        raise ValueError(", ".join(wrong[:NUM_NAMED]) + more)
