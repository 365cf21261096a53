# SPDX-License-Identifier: Apache-2.0
"""A run small enough for a test: Gaussian data of shape (3,), a network, a quiet trainer."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from gaussian import DATA_STD, PATH
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from scm_lightning.autodiff import TangentComputer, TangentMethod
from scm_lightning.autodiff.methods import MethodName
from scm_lightning.core import Bound
from scm_lightning.data import Batch
from scm_lightning.networks import MLP


class GaussianBatches(IterableDataset):
    """Endless batches of N(0, DATA_STD^2) scaled by `scale`, the same in every run."""

    def __init__(self, batch_size: int, scale: float = PATH.sigma_data / DATA_STD) -> None:
        self.batch_size, self.scale = batch_size, scale

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        while True:
            noise = torch.randn(self.batch_size, 3, generator=generator)
            yield Batch(self.scale * DATA_STD * noise, None)


def loader(batch_size: int = 5, **options: float) -> DataLoader:
    """Batches whose standard deviation is sigma_data unless scaled otherwise."""
    return DataLoader(GaussianBatches(batch_size, **options), batch_size=None)


def trainer(max_steps: int, **options: object) -> Trainer:
    """A quiet trainer that writes nothing."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", max_steps=max_steps, **{**quiet, **options})


def mlp(**options: bool | float) -> MLP:
    """A network for that data."""
    return MLP((3,), model_channels=24, num_blocks=2, emb_channels=16, **options)


def wake(network: nn.Module, seed: int = 0, std: float = 0.3) -> nn.Module:
    """Give every parameter a value: a fresh network says zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return network


def derive(
    method: TangentMethod | MethodName, network: Callable[..., Tensor], given: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """F and its derivative; labels and guidance among the arguments are bound to the network."""
    rest = {name: x for name, x in given.items() if name not in ("labels", "guidance")}
    bound = Bound(network, given.get("labels"), given.get("guidance"))
    return TangentComputer(method)(bound, **rest)


def rounding(network: nn.Module, dtype: torch.dtype) -> float:
    """Bound on the relative error of a derivative that a network computes in `dtype`.

    A layer with weights rounds its input, its weights and its output, each by up to eps / 2; over
    the layers these add up as a random walk.
    """
    weights = (getattr(each, "weight", None) for each in network.modules())
    depth = sum(isinstance(each, Tensor) and each.ndim > 1 for each in weights)
    return 1.5 * torch.finfo(dtype).eps * depth**0.5


class FixedTimes:
    """Stands in for a `TimeProposal` that draws certain times."""

    def __init__(self, t):
        self.t = t

    def sample(self, num, path, generator=None, device="cpu"):
        return self.t
