# SPDX-License-Identifier: Apache-2.0
"""Random numbers with a stated owner: one generator for a batch, or one for every sample.

With one generator per sample, a sample depends on its own seed alone, not on the batch it is drawn
in or on the process that draws it.
Axes: B batch, ... data axes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def standard_normal(
    shape: Sequence[int],
    generator: Generators = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw standard normal noise.

    Args:
        shape: (B, ...).
        generator: None for torch's global state, one generator for the batch, or B of them. Numbers
            are drawn on the generator's own device and then moved to `device`.
        dtype: floating type of the result.
        device: device of the result.

    Returns:
        Noise. (B, ...), unit variance.

    Raises:
        ValueError: if the number of generators is not B.
    """
    if generator is None:
        return torch.randn(tuple(shape), dtype=dtype, device=device)
    if isinstance(generator, torch.Generator):
        noise = torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
        return noise.to(device)
    if len(generator) != shape[0]:
        raise ValueError(
            f"need one generator per sample: the batch has {shape[0]} samples, got "
            f"{len(generator)} generators; pass as many as samples, or a single one"
        )
    rows = [
        torch.randn(tuple(shape[1:]), generator=each, dtype=dtype, device=each.device)
        for each in generator
    ]
    return torch.stack(rows).to(device)


def sample_generators(indices: Sequence[int], seed: int) -> list[torch.Generator]:
    """Make one generator for every sample, from the sample's index and the run's seed.

    Args:
        indices: index of every sample, at least 0, below 2^31.
        seed: the run's seed, at least 0.

    Returns:
        Generators on the CPU, in the order of `indices`.

    Raises:
        ValueError: if a number is negative or an index is too large.
    """
    if seed < 0 or any(not 0 <= index < 2**31 for index in indices):
        raise ValueError(
            f"seed must be at least 0 and every index in [0, 2^31): got seed {seed} and "
            f"indices from {min(indices)} to {max(indices)}; number the samples from 0"
        )
    # Seed and index fill disjoint bits, so no two (seed, index) pairs share a stream.
    return [torch.Generator().manual_seed(seed % 2**32 * 2**31 + index) for index in indices]
