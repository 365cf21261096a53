# SPDX-License-Identifier: Apache-2.0
"""The vision transformer that DINOv2's published weights are of.

    x = [class token, patches] + positions
    x = x + s1 * attention(norm(x));    x = x + s2 * mlp(norm(x))        depth times
    features = norm(x) of the class token

Attention has heads of 64 channels; the MLP is four times as wide, with GELU; norms have eps 1e-6;
s1 and s2 are learned, per channel. Positions are learned on a grid of 37x37 patches and
interpolated.

Source: Oquab et al., arXiv 2304.07193; Dosovitskiy et al., arXiv 2010.11929; s: arXiv 2103.17239.
Names of the parameters are those of the published files.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 14
"""Side of a patch, in pixels."""
GRID = 37
"""Side of the grid that positions were learned on, in patches: images of 518 pixels."""
HEAD_CHANNELS = 64


class Scale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply. (B, N, channels)."""
        return x * self.gamma


class Attention(nn.Module):
    """Attention of every token to all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens. (B, N, channels)."""
        batch, num_tokens, _ = x.shape
        heads = self.qkv(x).reshape(batch, num_tokens, 3, -1, HEAD_CHANNELS)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class MLP(nn.Module):
    """Two layers on every token."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Change tokens. (B, N, channels)."""
        changed: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return changed


class Block(nn.Module):
    """Attention and MLP, each added to what comes in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels)
        self.ls1 = Scale(channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MLP(channels)
        self.ls2 = Scale(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Change tokens. (B, N, channels)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        changed: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return changed


class PatchEmbedding(nn.Module):
    """Patches as tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """Cut into patches. (B, 3, H, W) to (B, H W / PATCH^2, channels)."""
        patches: Tensor = self.proj(images)
        return patches.flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Images to the features of the class token.

    Args:
        channels: length of a token.
        depth: number of blocks.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID**2, channels))
        self.mask_token = nn.Parameter(torch.zeros(1, channels))  # of the training; in the files
        self.patch_embed = PatchEmbedding(channels)
        self.blocks = nn.ModuleList([Block(channels) for _ in range(depth)])
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Look at normalised images. (B, 3, H, W), sides multiples of PATCH, to (B, channels)."""
        tokens = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], dim=1)
        tokens = tokens + self._positions(*images.shape[2:])
        for block in self.blocks:
            tokens = block(tokens)
        features: Tensor = self.norm(tokens)[:, 0]
        return features

    def _positions(self, height: int, width: int) -> Tensor:
        """Positions of the class token and the patches. (1, 1 + number of patches, channels).

        Bicubic, with the published code's scale, a tenth of a patch more than that of the grids.
        """
        rows, columns = height // PATCH, width // PATCH
        if rows == columns == GRID:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / GRID, (columns + 0.1) / GRID)
        grid = functional.interpolate(grid, scale_factor=scale, mode="bicubic")
        assert grid.shape[2:] == (rows, columns)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
