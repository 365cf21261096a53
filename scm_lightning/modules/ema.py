# SPDX-License-Identifier: Apache-2.0
"""Averaged copies of a network: the one that is sampled from, and further ones.

An average lives inside the module: it is checkpointed, moved and sharded like the network,
and nothing has to be swapped before sampling. Trap: its counters are buffers, on the device of the
network, so reading them waits for the device; they are read once, then counted in Python.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scm_lightning.core import gamma_from_sigma_rel, half_life_decay, power_function_decay


class EMAProfile(ABC):
    """Rate at which an average forgets."""

    @abstractmethod
    def decay(self, images_seen: int, images_in_step: int) -> float:
        """Decay of one optimizer step.

        Args:
            images_seen: images before this step, over all processes.
            images_in_step: images in this step, over all processes.
        """

    @property
    @abstractmethod
    def short_name(self) -> str:
        """Word that tells it from other profiles, in rows of a table."""


@dataclass(frozen=True)
class HalfLife(EMAProfile):
    """Exponential average with a half-life in images, as EDM's and the paper's on CIFAR-10.

    Args:
        images: half-life, in images.
        ramp_up: the half-life is at most this share of the images seen; None for no ramp-up.
    """

    images: float = 500_000.0
    ramp_up: float | None = 0.05

    def __post_init__(self) -> None:
        if not self.images > 0 or (self.ramp_up is not None and not self.ramp_up > 0):
            raise ValueError(
                f"an EMA half-life and its ramp-up must be positive, got {self.images} images and "
                f"{self.ramp_up}; the paper uses 500000 on CIFAR-10, EDM a ramp-up of 0.05"
            )

    def decay(self, images_seen: int, images_in_step: int) -> float:
        """See `EMAProfile`."""
        return half_life_decay(images_in_step, self.images, images_seen, self.ramp_up)

    @property
    def short_name(self) -> str:
        """Million images, such as `0.5M`; with the ramp-up, if that is not the usual one."""
        name = f"{self.images / 1e6:g}M"
        if self.ramp_up is None:
            return f"{name},no_ramp_up"
        return name if self.ramp_up == HalfLife.ramp_up else f"{name},ramp_up={self.ramp_up:g}"


@dataclass(frozen=True)
class PowerFunction(EMAProfile):
    """EDM2's average over a fixed share of the run, as the paper's on ImageNet.

    Args:
        sigma_rel: relative width of the profile.
    """

    sigma_rel: float = 0.05

    def __post_init__(self) -> None:
        gamma_from_sigma_rel(self.sigma_rel)  # refuses a width that no profile has

    def decay(self, images_seen: int, images_in_step: int) -> float:
        """See `EMAProfile`."""
        return power_function_decay(
            images_in_step, images_seen, gamma_from_sigma_rel(self.sigma_rel)
        )

    @property
    def short_name(self) -> str:
        """Its sigma_rel, such as `0.05`."""
        return f"{self.sigma_rel:g}"


def distinct_profiles(ema: EMAProfile | Sequence[EMAProfile]) -> list[EMAProfile]:
    """Profiles as a list.

    Args:
        ema: one profile or several.

    Raises:
        ValueError: if there is none, or one appears twice.
    """
    profiles = [ema] if isinstance(ema, EMAProfile) else list(ema)
    if not profiles or any(each in profiles[:place] for place, each in enumerate(profiles)):
        raise ValueError(
            f"ema must be one profile or several different ones, got {profiles}; the first is the "
            "one that is sampled from"
        )
    return profiles


class EMA(nn.Module):
    """An averaged copy of a network, in eval mode and without gradients.

    Args:
        network: the network to follow; copied.
        profile: how fast the average forgets.
    """

    num_steps: Tensor
    num_images: Tensor

    def __init__(self, network: nn.Module, profile: EMAProfile) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.profile = profile
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_images", torch.zeros((), dtype=torch.int64))
        self._counted: tuple[int, int] | None = None
        self.register_load_state_dict_post_hook(_forget_counts)  # type: ignore[no-untyped-call]

    def counts(self) -> tuple[int, int]:
        """Optimizer steps and images taken in; waits for the device only once."""
        if self._counted is None:
            self._counted = int(self.num_steps), int(self.num_images)
        return self._counted

    def train(self, mode: bool = True) -> "EMA":
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, network: nn.Module, images_in_step: int) -> None:
        """Take in the weights after an optimizer step.

        Args:
            network: the network that is followed.
            images_in_step: images of the step, over all processes.
        """
        steps, images = self.counts()
        beta = self.profile.decay(images, images_in_step)
        self._counted = steps + 1, images + images_in_step
        self.num_steps += 1
        self.num_images += images_in_step
        averages: list[Tensor] = list(self.network.parameters())
        weights: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averages, weights, 1.0 - beta)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)


def _forget_counts(module: EMA, incompatible_keys: object) -> None:
    """Read the counters again, once they have been loaded."""
    module._counted = None
