# SPDX-License-Identifier: Apache-2.0
"""A diffusion transformer for video: every block attends within frames, then across them.

    h <- DiTBlock(h)                      every frame by itself: L tokens attend to each other
    h <- h + attention(norm(h) + place)   every token by itself: its F frames attend to each other

The spatial part is `DiT` itself, whose batch is all frames of all clips. Only the attention across
frames, and the place of a frame in it, couple them.

Source: factorised attention in space and time: Ho et al., arXiv 2204.03458, Section 3; Ma et al.,
arXiv 2401.03048, variant 1. Normalization, attention and time are those of `dit.py`.
Axes: B batch, F frames, L tokens of a frame, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scm_lightning.networks.dit import DiT, DiTBlock, SelfAttention
from scm_lightning.networks.norms import AdaptiveDoubleNorm
from scm_lightning.networks.shapes import check_data_shape, checked_shape
from scm_lightning.networks.time_embedding import PositionalEmbedding, TimeEmbedding


class VideoBlock(nn.Module):
    """A block within frames, and attention across them, behind a double norm and on a residual.

    Args:
        within: the block that every frame goes through by itself.
        num_frames: frames F of a clip.
        num_channels: channels C.
        num_heads: heads of the attention across frames.
    """

    places: Tensor

    def __init__(
        self, within: DiTBlock, num_frames: int, num_channels: int, num_heads: int
    ) -> None:
        super().__init__()
        self.within = within
        self.norm = AdaptiveDoubleNorm(num_channels, num_channels, tokens=True)
        self.across = SelfAttention(num_channels, num_heads)
        places = PositionalEmbedding(num_channels)(torch.arange(num_frames).float())
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Tensor, emb: Tensor, *text: Tensor) -> Tensor:
        """Map (B F, L, C) to (B F, L, C); `text` as of `DiTBlock`."""
        x = self.within(x, emb, *text)
        y = self.norm(x, emb).reshape(-1, len(self.places), *x.shape[1:]).transpose(1, 2)
        y = y + self.places.to(y.dtype)  # (B, L, F, C)
        across: Tensor = self.across(y.flatten(0, 1)).reshape(y.shape)
        return x + across.transpose(1, 2).flatten(0, 1)


class VideoDiT(nn.Module):
    """F(u, t, labels, guidance, t_end, text, image) on clips, whose frames are cut into patches.

    Args:
        data_shape: shape of one clip, (channels, frames, height, width).
        patch_size: side of a patch, a divisor of height and width. Pixels.
        model_channels: channels C.
        num_blocks: blocks, each with attention within frames and across them.
        num_heads: heads of every attention, a divisor of C.
        num_classes: number of classes; 0 for a network without labels.
        guided: whether the network takes a guidance scale.
        two_times: whether the network takes the time that its flow map leads to.
        dropout: probability of dropping an activation inside a block.
        time_embedding: how the network sees the times.
        text_channels: features D of the tokens of a text that the patches attend to; 0 for none.
        image_channels: channels C' of an image that every frame is given; 0 for none.

    Attributes:
        condition_names: the conditions that the network is called with by name.

    Raises:
        ValueError: if the shape is not that of a clip, the patches do not tile its frames, or the
            heads do not divide the channels.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        patch_size: int = 2,
        model_channels: int = 256,
        num_blocks: int = 8,
        num_heads: int = 4,
        num_classes: int = 0,
        guided: bool = False,
        two_times: bool = False,
        dropout: float = 0.0,
        time_embedding: TimeEmbedding = TimeEmbedding(),
        text_channels: int = 0,
        image_channels: int = 0,
    ) -> None:
        super().__init__()
        self.data_shape = checked_shape(data_shape, model_channels, num_blocks)
        if len(self.data_shape) != 4:
            raise ValueError(
                f"a VideoDiT takes clips (C, F, H, W), got data_shape {self.data_shape}; use DiT "
                "for images"
            )
        channels, self.num_frames, *sides = self.data_shape
        self.frames = DiT(
            [channels, *sides],
            patch_size,
            model_channels,
            num_blocks,
            num_heads,
            num_classes,
            guided,
            two_times,
            dropout,
            time_embedding,
            text_channels,
            image_channels,
        )
        self.text_channels, self.image_channels = text_channels, image_channels
        self.condition_names = self.frames.condition_names
        self.frames.blocks = nn.ModuleList(
            VideoBlock(block, self.num_frames, model_channels, num_heads)
            for block in self.frames.blocks
            if isinstance(block, DiTBlock)
        )

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        t_end: Tensor | None = None,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """Evaluate F.

        Args:
            u: x_t / sigma_data. (B, *data_shape), unit variance.
            t: times. (B,), radians.
            labels: class labels, NULL_LABEL for no class. (B,) int64, or None for no class.
            guidance: guidance scales. (B,), or None.
            t_end: times that the flow map leads to. (B,), radians, or None.
            text: tokens of a text, constant in u and t. (B, L, text_channels), or None.
            text_mask: which of them there are. (B, L), bool, or None for all.
            image: image for every frame, (B, C', H, W), or one for each, (B, C', F, H, W); constant
                in u and t. None for none.

        Returns:
            F. (B, *data_shape), unit variance.

        Raises:
            ValueError: if a clip has another shape than `data_shape`, or a condition comes that the
                network was built without, or one is missing.
        """
        check_data_shape(self, u, self.data_shape)
        frames = u.transpose(1, 2)  # (B, F, C, H, W)
        of_each = (self._for_every_frame(given) for given in (t, labels, guidance, t_end))
        given = {"text": text, "text_mask": text_mask, "image": image}
        named = {name: self._for_every_frame(condition) for name, condition in given.items()}
        if image is not None and image.ndim == u.ndim:
            named["image"] = image.transpose(1, 2).flatten(0, 1)
        F: Tensor = self.frames(frames.flatten(0, 1), *of_each, **named)
        return F.reshape(frames.shape).transpose(1, 2)

    def _for_every_frame(self, given: Tensor | None) -> Tensor | None:
        """Hand a condition of a clip to its frames. (B, ...) to (B F, ...)."""
        if given is None:
            return None
        return given[:, None].expand(-1, self.num_frames, *given.shape[1:]).flatten(0, 1)
