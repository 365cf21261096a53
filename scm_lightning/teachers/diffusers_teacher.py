# SPDX-License-Identifier: Apache-2.0
"""Pretrained diffusion models of diffusers as TrigFlow's F, and students that start as them.

Its own scheduler's configuration says what a model predicts, and on which noise; see
`diffusers_schedules.py`. F is exact for any `sigma_data`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from scm_lightning.core import DiscreteProcess, Process, TrigFlow
from scm_lightning.networks import DiffusersNetwork, FlowTime, ParametrizedNetwork
from scm_lightning.networks.diffusers_maps import map_of
from scm_lightning.networks.model_map import ModelMap
from scm_lightning.saying import say
from scm_lightning.teachers.adapted import AdaptedTeacher
from scm_lightning.teachers.diffusers_check import check_against_scheduler
from scm_lightning.teachers.diffusers_folder import DiffusersFolder
from scm_lightning.teachers.diffusers_schedules import process_of, scheduler_of

Predicted = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
STEPS = 1000
"""Time of a model of a flow at pure noise, where its class says nothing else."""
ALIKE = 0.01
"""Largest difference, in shares, of statistics of latents that are the same."""


class DiffusersTeacher(AdaptedTeacher):
    """A pretrained model of diffusers.

    On loading, F is compared with the scheduler's own estimate of x0 at whole steps, in one line.
    A model of noise (epsilon) has its error divided by cos t, one of the data (sample) by sin t;
    v_prediction and flow_prediction divide by nothing small, and make the better teachers and
    students. Outside the noise of its training it stays at the nearest that it knows.

    Classes and texts are called as `DiffusersNetwork` says. Guidance is `core.Guided`'s: the row
    that stands for no class is DiT's own, else zeros or `null_class`.

    Args:
        path: folder of a pipeline (model_index.json, `unet` or `transformer`, `scheduler`) or of a
            model beside its scheduler, as save_pretrained writes them; or the name of a repository
            of the Hugging Face hub, OWNER/NAME. Weights are safetensors.
        subfolder: the model's folder within it; None to find it.
        variant: part of the names of the weights' files, as fp16; None for those without. Weights
            are converted to float32.
        prediction: what the model predicts; None for what its scheduler says.
        data_scale: factor from the data that the model was trained on to those of the run: 1/2 for
            latents of unit variance and a `sigma_data` of 1/2.
        null_class: class of the model that stands for none, the last one; None for the model's own,
            or zeros.
        licence: licence of its weights; None for the one in its README.md.

    Raises:
        ValueError: if the files are not those of a known model and scheduler, or the check fails.
    """

    def __init__(
        self,
        path: str,
        subfolder: str | None = None,
        variant: str | None = None,
        prediction: Predicted | None = None,
        data_scale: float = 1.0,
        null_class: int | None = None,
        licence: str | None = None,
    ) -> None:
        folder = DiffusersFolder(path, subfolder, variant)
        scheduler = None if folder.scheduler is None else scheduler_of(folder.scheduler)
        process = process_of(scheduler, prediction, TrigFlow(1.0))
        model = folder.load()
        network, sign = network_of(model, process, null_class)
        stored = "" if folder.stored in ([], ["F32"]) else f", stored as {'/'.join(folder.stored)}"
        super().__init__(
            network,
            process,
            noise_range=_noise_range(process),
            num_classes=network.num_classes,
            data_scale=data_scale,
            licence=folder.licence if licence is None else licence,
            condition_names=network.condition_names,
            source=f"{type(model).__name__} {path} ({process.predicts}{stored})",
            sign=sign,
        )
        self.autoencoder = folder.autoencoder
        self.conversion = check_against_scheduler(self, network, scheduler)
        say(f"{self.source}: {self.conversion.described()}")

    def latents_misfit(self, mean: Sequence[float], std: Sequence[float]) -> str:
        """Say in one clause why latents are not those that the model was trained on, or nothing.

        x0 = (z - mean) sigma_data / std must be data_scale times what the model gets, which is
        (z - shift_factor) scaling_factor of its autoencoder. Where no autoencoder is known, nothing
        is said.

        Args:
            mean: mean that is subtracted from a latent z, per channel.
            std: standard deviation that it is divided by, per channel.
        """
        expected = latent_statistics(self.autoencoder or {}, len(mean))
        if expected is None:
            return ""
        shift, unit = expected
        needed = [self.path.sigma_data / self.data_scale * each for each in unit]
        off = [
            abs(m - s) > ALIKE * u or abs(d / n - 1) > ALIKE
            for m, s, u, d, n in zip(mean, shift, unit, std, needed, strict=True)
        ]
        if not any(off):
            return ""
        channel = off.index(True)
        return (
            f"{self.source} takes latents with mean {shift[channel]:.5g} and std "
            f"{needed[channel]:.5g} at data_scale {self.data_scale:g}, those of channel {channel} "
            f"have {mean[channel]:.5g} and {std[channel]:.5g}; set mean and std of index.json"
        )


class DiffusersStudent(ParametrizedNetwork):
    """A student of the class of a pretrained model of diffusers, which starts with its weights.

    It computes the same F as `DiffusersTeacher`. Saved are its weights alone: loading a checkpoint
    needs the folder again.

    Args:
        path: see `DiffusersTeacher`; the same for all that follows.
        sigma_data: standard deviation of the data of the run; that of the student's path.
        subfolder: see `DiffusersTeacher`.
        variant: see `DiffusersTeacher`.
        prediction: see `DiffusersTeacher`.
        data_scale: see `DiffusersTeacher`.
        null_class: see `DiffusersTeacher`.

    Raises:
        ValueError: if the files are not those of a known model and scheduler.
    """

    def __init__(
        self,
        path: str,
        sigma_data: float,
        subfolder: str | None = None,
        variant: str | None = None,
        prediction: Predicted | None = None,
        data_scale: float = 1.0,
        null_class: int | None = None,
    ) -> None:
        folder = DiffusersFolder(path, subfolder, variant)
        scheduler = None if folder.scheduler is None else scheduler_of(folder.scheduler)
        process = process_of(scheduler, prediction, TrigFlow(sigma_data / data_scale))
        network, sign = network_of(folder.load(), process, null_class)
        super().__init__(network, process, sign)


def network_of(
    model: nn.Module, process: Process, null_class: int | None = None
) -> tuple[DiffusersNetwork, float]:
    """The model as a network that is told times of the process, and the sign of its output.

    Args:
        model: model of diffusers, of a known class.
        process: what it was trained on.
        null_class: class that stands for none; None for the model's own.

    Raises:
        ValueError: if the class for none is not the model's last.
    """
    its: ModelMap = map_of(model)
    own = its.source_time if isinstance(its.source_time, FlowTime) else FlowTime(STEPS)
    told = own if not isinstance(process, DiscreteProcess) else FlowTime(own.scale / STEPS)
    if null_class is not None:
        if not its.labels or its.null_class is not None or null_class != its.num_classes - 1:
            raise ValueError(
                f"null_class must be the last of the {its.num_classes} classes of "
                f"{type(model).__name__}, which has none of its own, got {null_class}; leave it out"
            )
        its = replace(its, null_class=null_class, num_classes=null_class)
    sign = -1.0 if told.from_noise else 1.0
    return DiffusersNetwork(model, replace(its, told=told.told)), sign


def latent_statistics(
    autoencoder: dict[str, Any], channels: int
) -> tuple[list[float], list[float]] | None:
    """Shift and unit of latents z, of which a model gets (z - shift) / unit; None if not known.

    Args:
        autoencoder: its configuration.
        channels: number of channels of its latents.
    """
    if autoencoder.get("latents_mean"):
        return list(autoencoder["latents_mean"]), list(autoencoder["latents_std"])
    is_usual = autoencoder.get("_class_name") == "AutoencoderKL"
    scale = autoencoder.get("scaling_factor", 0.18215 if is_usual else None)
    if not scale:
        return None
    return [autoencoder.get("shift_factor") or 0.0] * channels, [1 / scale] * channels


def _noise_range(process: Process) -> tuple[float, float]:
    """Ratios of noise to data of a process, but for the end where its prediction says nothing."""
    if not isinstance(process, DiscreteProcess):
        return 0.0, float("inf")
    kept = torch.tensor(process.alphas_bar, dtype=torch.float64)
    ratios = ((1 - kept) / kept).sqrt()
    if process.predicts == "epsilon":
        ratios = ratios[kept > 0]
    return float(ratios[0]), float(ratios[-1])
