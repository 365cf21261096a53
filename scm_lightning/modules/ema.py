# SPDX-License-Identifier: Apache-2.0
"""The averaged copy of a network that is sampled from.

The average lives inside the module: it is checkpointed, moved and (later) sharded like the network,
and nothing has to be swapped before sampling.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scm_lightning.core import gamma_from_sigma_rel, half_life_decay, power_function_decay


class EMAProfile(ABC):
    """How fast an average forgets."""

    @abstractmethod
    def decay(self, step: int, images_seen: int, images_in_step: int) -> float:
        """Decay of one optimizer step.

        Args:
            step: number of this optimizer step, the first being 1.
            images_seen: images before this step, over all processes.
            images_in_step: images in this step, over all processes.
        """


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
        if self.images <= 0 or (self.ramp_up is not None and self.ramp_up <= 0):
            raise ValueError(
                f"an EMA half-life and its ramp-up must be positive, got {self.images} images and "
                f"{self.ramp_up}; the paper uses 500000 on CIFAR-10, EDM a ramp-up of 0.05"
            )

    def decay(self, step: int, images_seen: int, images_in_step: int) -> float:
        """See `EMAProfile`."""
        return half_life_decay(images_in_step, self.images, images_seen, self.ramp_up)


@dataclass(frozen=True)
class PowerFunction(EMAProfile):
    """EDM2's average over a fixed share of the run, as the paper's on ImageNet.

    Args:
        sigma_rel: relative width of the profile.
    """

    sigma_rel: float = 0.05

    def __post_init__(self) -> None:
        gamma_from_sigma_rel(self.sigma_rel)  # refuses a width that no profile has

    def decay(self, step: int, images_seen: int, images_in_step: int) -> float:
        """See `EMAProfile`."""
        return power_function_decay(step, gamma_from_sigma_rel(self.sigma_rel))


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
        self.num_steps += 1
        beta = self.profile.decay(int(self.num_steps), int(self.num_images), images_in_step)
        self.num_images += images_in_step
        averages: list[Tensor] = list(self.network.parameters())
        weights: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averages, weights, 1.0 - beta)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
