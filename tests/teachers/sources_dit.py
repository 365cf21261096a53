# SPDX-License-Identifier: Apache-2.0
"""Small trained files of the structure of DiT-XL-2-256x256.pt and SiT-XL-2-256x256.pt.

Public weights are not at hand: these have the published names and order of axes and rows, not the
size.
"""

from pathlib import Path
from typing import Literal

import torch
from teachers.toy import train_on_toy
from torch import Tensor

from scm_lightning.core import DiscreteProcess, RectifiedFlowProcess, TrigFlow, linear_alphas_bar
from scm_lightning.networks import ParametrizedNetwork
from scm_lightning.teachers.dit_network import DiTSizes, OriginalDiT

SHAPE, CLASSES, SIGMA_DATA, HEADS = (2, 8, 8), 3, 0.7, 4
SIZES = DiTSizes(
    width=48,
    depth=2,
    num_heads=HEADS,
    patch_size=2,
    num_tokens=16,
    in_channels=2,
    out_channels=4,
    num_classes=CLASSES,
    num_features=32,
    hidden=96,
)
Kind = Literal["dit", "sit"]


def fresh(kind: Kind) -> OriginalDiT:
    """A network with the embedding of places that the original computes and stores."""
    torch.manual_seed(0)
    network = OriginalDiT(SIZES, from_noise=kind == "sit")
    quarter = SIZES.width // 4
    angles = torch.arange(4.0)[:, None] * 10000 ** -(torch.arange(quarter) / quarter)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = waves.repeat(4, 1), waves.repeat_interleave(4, dim=0)
    network.pos_embed = torch.cat([columns, rows], dim=1)[None]
    return network


def write_dit(folder: Path, kind: Kind = "dit", steps: int = 120) -> Path:
    """Write such a file; a tenth of the labels it sees are its row for none.

    Args:
        folder: where to.
        kind: which of both.
        steps: steps of training; 0 for random weights.
    """
    network = fresh(kind)
    if steps:
        train(network, kind, steps)
    file = folder / f"{'DiT' if kind == 'dit' else 'SiT'}-tiny-2-64x64.pt"
    torch.save(network.state_dict(), file)
    return file


def train(network: OriginalDiT, kind: Kind, steps: int) -> float:
    path = TrigFlow(SIGMA_DATA)
    flow = RectifiedFlowProcess(path)
    process = flow if kind == "sit" else DiscreteProcess(path, linear_alphas_bar())
    F = ParametrizedNetwork(network, process, -1.0 if kind == "sit" else 1.0)

    def with_none(u: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        hidden = torch.arange(len(labels)) % 10 == 0
        return F(u, t, labels.where(~hidden, -1))

    return train_on_toy(
        with_none, [*network.parameters()], SHAPE, CLASSES, SIGMA_DATA, steps=steps, lr=8e-3
    )
