# SPDX-License-Identifier: Apache-2.0
"""Samples that a run draws: the same ones, from the same noise, in several ways; and their cost.

Network calls are counted where they are made, so the number beside a score is what was computed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from scm_lightning.core import sample_generators, standard_normal
from scm_lightning.data.batch import SampleRequest
from scm_lightning.modules.ema import EMA
from scm_lightning.sampling import Draw, Samples
from scm_lightning.teachers import FrozenTeacher


def draw_samples(
    module: nn.Module,
    request: SampleRequest,
    draws: Mapping[str, Draw],
    sigma_data: float,
    device: torch.device,
) -> dict[str, Samples]:
    """Draw the samples of a request.

    Args:
        module: owner of the networks that are called.
        request: which samples, of which class.
        draws: the ways, by name.
        sigma_data: standard deviation of the noise that they start from. Data units.
        device: device to draw on.

    Returns:
        Samples by name, (B, *request.shape) each.
    """
    if not len(request.indices):
        # Sharded weights are gathered by all processes, with samples to draw or without.
        labels = None if request.labels is None else request.labels.new_zeros(1)
        named = {name: x.new_zeros(1, *x.shape[1:]) for name, x in request.conditions.items()}
        one = request.indices.new_zeros(1)
        spare = request._replace(indices=one, labels=labels, conditions=named)
        drawn = draw_samples(module, spare, draws, sigma_data, device)
        return {name: Samples(each.x0[:0], each.nfe) for name, each in drawn.items()}
    found = {}
    for name, draw in draws.items():
        generators = sample_generators(request.indices.tolist(), request.seed)
        shape = (len(generators), *request.shape)
        noise = sigma_data * standard_normal(shape, generators, device=device)
        with _images_seen(module) as seen:
            x0 = draw(noise, request.given(), generators)
        found[name] = Samples(x0, sum(seen) // len(generators))
    return found


@contextmanager
def _images_seen(module: nn.Module) -> Iterator[list[int]]:
    """Note the batch size of every call of an average or a teacher, inside the context."""
    seen: list[int] = []
    owners = (each for each in module.modules() if isinstance(each, EMA | FrozenTeacher))
    networks = [each.get_submodule("network") for each in owners]
    hooks = [
        each.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        for each in networks
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
