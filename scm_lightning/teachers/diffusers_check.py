# SPDX-License-Identifier: Apache-2.0
"""Denoisers of diffusers' own schedulers at whole steps, on random inputs of a model.

Axes: B samples, one for each of a few times.
"""

from typing import Any

import torch
from torch import Tensor

from scm_lightning.core import DiscreteProcess, expand_time
from scm_lightning.networks import DiffusersNetwork
from scm_lightning.networks.diffusers_layouts import FRAMES_FIRST, PACKED
from scm_lightning.networks.diffusers_network import TEXT_WIDTHS
from scm_lightning.teachers.adapted import AdaptedTeacher
from scm_lightning.teachers.conversion_check import Conversion
from scm_lightning.teachers.diffusers_folder import diffusers

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Times to compare at, as shares of the scheduler's own."""
SIDE, FRAMES, TOKENS = 32, 3, 5
"""Largest side of the random samples, their frames, and the tokens of a text of no fixed length."""


def check_against_scheduler(
    teacher: AdaptedTeacher, network: DiffusersNetwork, scheduler: Any | None
) -> Conversion:
    """Compare F with the scheduler's own estimate of x0 from the model's output, at both ends too.

    Args:
        teacher: the teacher.
        network: the network within it, which is called with times of the scheduler.
        scheduler: of diffusers; None for a flow without one.

    Raises:
        ValueError: if they differ.
    """
    process = teacher.network.process
    if isinstance(process, DiscreteProcess):
        assert scheduler is not None, "a discrete process is that of a scheduler"
        reference: _DDIM | _Flow = _DDIM(scheduler, process)
    else:
        reference = _Flow()
    shape, conditions = random_inputs(network, len(SHARES))
    labels = torch.arange(len(SHARES)) % network.num_classes if network.num_classes else None
    sigma_data = process.path.sigma_data

    def denoiser(x: Tensor, sigma: Tensor, *labels: Tensor, **named: Tensor) -> Tensor:
        alpha, noise = (expand_time(each, x) for each in (reference.alpha, reference.sigma))
        of_noise = noise * x / expand_time(sigma, x).clamp(min=1e-12)
        noisy = of_noise.where(noise > alpha, alpha * x).to(x.dtype)
        predicted = teacher.network.sign * network(
            noisy, reference.times.to(noisy), *labels, **named
        )
        return reference.x0(predicted, noisy)

    times = torch.atan2(reference.sigma, sigma_data * reference.alpha)
    return teacher.check(denoiser, shape, labels, times=times, **conditions)


class _Flow:
    """Rectified flow: x0 = x - s v, the step to s = 0 of FlowMatchEulerDiscreteScheduler."""

    def __init__(self) -> None:
        self.times = self.sigma = torch.tensor(SHARES, dtype=torch.float64)
        self.alpha = 1 - self.sigma

    def x0(self, predicted: Tensor, noisy: Tensor) -> Tensor:
        return noisy - expand_time(self.sigma, noisy) * predicted


class _DDIM:
    """DDIMScheduler's `pred_original_sample`, with the table of the model's own scheduler."""

    def __init__(self, scheduler: Any, process: DiscreteProcess) -> None:
        self.scheduler = diffusers().DDIMScheduler.from_config(
            scheduler.config,
            prediction_type=process.predicts,
            clip_sample=False,
            thresholding=False,
        )
        table = scheduler.alphas_cumprod.double()
        self.scheduler.alphas_cumprod = table
        self.scheduler.set_timesteps(len(table))
        last = len(table) - 1
        if process.predicts == "epsilon" and process.ends_in_noise:
            last -= 1  # where there is nothing but noise, it tells nothing of the data
        self.times = (torch.tensor(SHARES) * last).floor().double()
        kept = table[self.times.long()]
        self.alpha, self.sigma = kept.sqrt(), (1 - kept).sqrt()

    def x0(self, predicted: Tensor, noisy: Tensor) -> Tensor:
        steps = zip(predicted[:, None], self.times.long().tolist(), noisy[:, None], strict=True)
        found = [self.scheduler.step(*each).pred_original_sample for each in steps]
        return torch.cat(found)


def random_inputs(network: DiffusersNetwork, num: int) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Shape of a small sample of a model, and random conditions of its widths.

    Args:
        network: the model.
        num: number of samples.
    """
    config: Any = network.model.config
    generator = torch.Generator().manual_seed(1)
    weight = next(network.parameters())

    def drawn(*shape: int) -> Tensor:
        found = torch.randn(num, *shape, generator=generator, dtype=torch.float64)
        return found.to(weight)

    found = {}
    for name in network.map.conditions:
        if name == "pooled":
            width = config.get("pooled_projection_dim") or (
                config["projection_class_embeddings_input_dim"]
                - 6 * config["addition_time_embed_dim"]
            )
            found[name] = drawn(width)
        else:
            is_t5 = name == "text_t5"
            widths = ("cross_attention_dim_t5",) if is_t5 else TEXT_WIDTHS
            lengths = ("text_len_t5",) if is_t5 else ("text_len", "max_text_seq_length")
            width = next(config[key] for key in widths if isinstance(config.get(key), int))
            length = next((config[key] for key in lengths if config.get(key)), TOKENS)
            found[name] = drawn(length, width)
    return _sample_shape(network), found


def _sample_shape(network: DiffusersNetwork) -> tuple[int, ...]:
    config: Any = network.model.config
    channels = config["in_channels"] // (4 if network.map.layout is PACKED else 1)
    sides = config.get("sample_size") or (config.get("sample_height"), config.get("sample_width"))
    sides = (sides, sides) if isinstance(sides, int) else sides
    height, width = (min(SIDE, side or SIDE) for side in sides)
    is_video = network.map.layout is FRAMES_FIRST or "3D" in type(network.model).__name__
    frames = (FRAMES,) if is_video else ()
    return channels, *frames, height, width
