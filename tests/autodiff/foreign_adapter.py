# SPDX-License-Identifier: Apache-2.0
"""People's networks behind the call of ours, small, with random weights.

A model of diffusers is called as its own pipeline calls it; what it wants besides the picture and
the time (text, pooled text, sizes) are fixed random buffers. Its time is a tensor of (B,), made
from t in radians by one factor: 1 / (pi / 2), or 1000 / (pi / 2) where it counts to 1000.
"""

from collections.abc import Callable
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor, nn

B = 3
"""Batch size, unlike any other axis."""


class Foreign(nn.Module):
    """F(u, t, labels, guidance) by a model of others.

    Args:
        model: the model.
        call: (self, u, time) to the model's output, a tensor or a tuple that starts with it.
        time_max: the time that is handed over at t = pi / 2.
        given: what the model wants besides, by name. (B, ...) each.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Callable[["Foreign", Tensor, Tensor], Tensor | tuple[Tensor, ...]],
        time_max: float = 1.0,
        **given: Tensor,
    ) -> None:
        super().__init__()
        self.model, self.call, self.time_max = model, call, time_max
        for name, value in given.items():
            self.register_buffer(name, value)

    def forward(self, u, t, labels=None, guidance=None):
        out = self.call(self, u, self.time_max / (pi / 2) * t)
        return out[0] if isinstance(out, tuple) else out


class Network(NamedTuple):
    """A builder and how to test what it builds.

    Attributes:
        build: a function without arguments to a module; called under a fixed seed.
        shape: of a sample, without the batch.
        slow: whether it is left to `make test-slow`.
        modes: floating-point types, "float64", "float32" or "bf16" (autocast).
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    slow: bool = False
    modes: tuple[str, ...] = ("float64",)


def text(*shape: int) -> Tensor:
    """Random conditioning of (B, *shape)."""
    return torch.randn(B, *shape)


def built(network: Network) -> nn.Module:
    """Build a network with random weights: nothing is zero or one, layers keep their variance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = network.build()
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if weight.ndim > 1:
                    nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
                else:
                    centre = 1.0 if name.endswith(("weight", "gamma", "original0")) else 0.0
                    nn.init.normal_(weight, mean=centre, std=0.2)
    return module.train()
