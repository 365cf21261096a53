# SPDX-License-Identifier: Apache-2.0
"""One thread for everything: two are slower on a loaded machine, and differ in rounding."""

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before any test imports lightning

# isort: on
import lightning.pytorch  # noqa: F401  its log handler keeps the stderr of its first import
import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)


@pytest.fixture
def randn():
    """Seeded float64 noise: `randn(5, 3)`."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw
