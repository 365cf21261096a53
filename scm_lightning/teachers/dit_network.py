# SPDX-License-Identifier: Apache-2.0
"""The diffusion transformer of DiT and SiT with its published names of tensors.

Beside `networks.DiT` it has adaptive layer norms with a raw scale and shift, gates, no
normalization of queries and keys, a stored embedding of the places, and frequencies of the time
from 1 to 10000^(-127/128). The last layer's rows count (row, column, channel) of a patch.
Source: Peebles and Xie, arXiv 2212.09748; Ma et al., arXiv 2401.08740.
Axes: B batch, L tokens, C channels of the model, H heads, D channels of a head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scm_lightning.autodiff import attention
from scm_lightning.core import NULL_LABEL
from scm_lightning.networks.classes import ClassConditioning
from scm_lightning.networks.shapes import check_data_shape

NUM_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Heads of the published sizes S, B, L and XL by their width: no tensor tells them."""
LONGEST_PERIOD = 10000.0
EPS = 1e-6


@dataclass(frozen=True)
class DiTSizes:
    """Sizes of such a network.

    Args:
        width: channels C.
        depth: number of blocks.
        num_heads: heads H.
        patch_size: side of a patch. Pixels.
        num_tokens: patches L of an image, which is a square.
        in_channels: channels of an image.
        out_channels: channels that it predicts; those beyond an image's are the variance.
        num_classes: number of classes, without the one that stands for none.
        num_features: features of the time.
        hidden: channels inside a block's perceptron.
    """

    width: int
    depth: int
    num_heads: int
    patch_size: int
    num_tokens: int
    in_channels: int
    out_channels: int
    num_classes: int
    num_features: int
    hidden: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], num_heads: int | None = None) -> "DiTSizes":
        """Read the sizes off the shapes of the weights.

        Args:
            tensors: weights by name.
            num_heads: heads; None for those of a published width.

        Raises:
            ValueError: if the weights are those of no such network; the message is the reason.
        """

        def shape(name: str, axes: int) -> tuple[int, ...]:
            found = tensors[name].shape if name in tensors else ()
            if len(found) != axes or 0 in found:
                raise ValueError(f"its {name} must have {axes} axes, got {tuple(found)}")
            return tuple(found)

        width, in_channels, patch_size, _ = shape("x_embedder.proj.weight", 4)
        depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
        heads = NUM_HEADS.get(width) if num_heads is None else num_heads
        if heads is None or heads < 1 or width % heads:
            known = ", ".join(map(str, NUM_HEADS))
            raise ValueError(
                f"num_heads must divide its {width} channels, and is known for {known} alone, got "
                f"{num_heads}"
            )
        return cls(
            width=width,
            depth=depth,
            num_heads=heads,
            patch_size=patch_size,
            num_tokens=shape("pos_embed", 3)[1],
            in_channels=in_channels,
            out_channels=shape("final_layer.linear.weight", 2)[0] // patch_size**2,
            num_classes=shape("y_embedder.embedding_table.weight", 2)[0] - 1,
            num_features=shape("t_embedder.mlp.0.weight", 2)[1],
            hidden=shape("blocks.0.mlp.fc1.weight", 2)[0],
        )


class OriginalDiT(ClassConditioning):
    """Network(x, time, labels) of DiT and SiT: its output without the channels of the variance.

    Args:
        sizes: its sizes.
        from_noise: whether the network's own time counts from the noise, as SiT's does: it is
            called with s and told 1 - s.

    Raises:
        ValueError: if the patches are not those of a square.
    """

    pos_embed: Tensor

    def __init__(self, sizes: DiTSizes, from_noise: bool = False) -> None:
        super().__init__()
        side = math.isqrt(sizes.num_tokens)
        if side**2 != sizes.num_tokens or sizes.num_features % 2:
            raise ValueError(f"its {sizes.num_tokens} places must be those of a square")
        width, area = sizes.width, sizes.patch_size**2
        self.num_classes, self.side, self.from_noise = sizes.num_classes, side, from_noise
        self.data_shape = (sizes.in_channels, *[side * sizes.patch_size] * 2)
        self.patch_size = sizes.patch_size
        self.x_embedder = nn.ModuleDict(
            {"proj": nn.Conv2d(sizes.in_channels, width, sizes.patch_size, sizes.patch_size)}
        )
        self.num_features = sizes.num_features
        layers = [nn.Linear(sizes.num_features, width), nn.SiLU(), nn.Linear(width, width)]
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(*layers)})
        table = nn.Embedding(sizes.num_classes + 1, width)
        self.y_embedder = nn.ModuleDict({"embedding_table": table})
        self.register_buffer("pos_embed", torch.zeros(1, sizes.num_tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, sizes.num_heads, sizes.hidden) for _ in range(sizes.depth)
        )
        linear = nn.Linear(width, area * sizes.out_channels)
        self.final_layer = nn.ModuleDict(
            {"linear": linear, "adaLN_modulation": modulation(width, 2)}
        )

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict.

        Args:
            x: the process's noisy data. (B, *data_shape).
            time: the process's own time. (B,).
            labels: class labels, NULL_LABEL for no class. (B,) int64, or None for no class.

        Returns:
            The noise (DiT), or data less noise (SiT). Shape of x.

        Raises:
            ValueError: if the images have another shape.
        """
        check_data_shape(self, x, self.data_shape)
        if labels is None:
            labels = torch.full_like(time, NULL_LABEL, dtype=torch.int64)
        labels = labels.where(labels != NULL_LABEL, self.num_classes)  # its last row is no class
        emb = self._time(1 - time if self.from_noise else time)
        emb = emb + self.y_embedder["embedding_table"](labels)
        h = self.x_embedder["proj"](x.to(emb.dtype)).flatten(2).transpose(1, 2)
        h = h + self.pos_embed
        for block in self.blocks:
            h = block(h, emb)
        shift, scale = self.final_layer["adaLN_modulation"](emb).chunk(2, dim=1)
        h = self.final_layer["linear"](modulated(h, shift, scale))
        p, side = self.patch_size, self.side
        patches = h.unflatten(2, (p, p, -1)).unflatten(1, (side, side))
        image: Tensor = patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return image[:, : self.data_shape[0]]

    def _time(self, time: Tensor) -> Tensor:
        """Embedding of the time. (B,) to (B, C)."""
        half = self.num_features // 2
        powers = torch.arange(half, device=time.device, dtype=time.dtype) / half
        angles = time[:, None] * LONGEST_PERIOD**-powers
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        emb: Tensor = self.t_embedder["mlp"](features.to(self.pos_embed.dtype))
        return emb


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on a residual behind a gate.

    Args:
        width: channels C.
        num_heads: heads H.
        hidden: channels inside the perceptron.
    """

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map tokens (B, L, C) and an embedding (B, C) to tokens (B, L, C)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(emb).chunk(6, 1)
        qkv = self.attn["qkv"](modulated(x, shift, scale))
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = self.attn["proj"](attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + gate[:, None] * y
        y = self.mlp["fc1"](modulated(x, shift_mlp, scale_mlp))
        y = self.mlp["fc2"](nn.functional.gelu(y, approximate="tanh"))
        return x + gate_mlp[:, None] * y  # type: ignore[no-any-return]


def modulation(width: int, num: int) -> nn.Sequential:
    """Layers from the embedding to `num` shifts, scales and gates of C channels."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, num * width))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens through a layer norm without weights, scaled and shifted. (B, L, C)."""
    normed = nn.functional.layer_norm(x, x.shape[-1:], eps=EPS)
    return normed * (1 + scale[:, None]) + shift[:, None]
