# SPDX-License-Identifier: Apache-2.0
r"""Augmentation of training images whose network is told what was done: EDM's pipeline.

    p -> q    translate(W a6 / 8, H a7 / 8) stretch(a4, a5) rotate(a3) 2^(0.2 a2) flips(a0, a1) p
    stretch   rotate(a4) diag(2^(0.2 a5), 2^(-0.2 a5)) rotate(-a4)
    labels    (a0, a1, a2, cos a3 - 1, sin a3, a5 cos a4, a5 sin a4, a6, a7)

What was at p is then at q, in pixels from the image's center, x right and y down; angles turn
counterclockwise as an image is displayed. a0 is 0 or 1 at random. With probability p = 0.12 each,
otherwise zero: a1, 0 or 1; a2 ~ N(0, 1); a3 ~ U(-pi, pi); a5 ~ N(0, 1) together with a4; a6 and
a7 ~ N(0, 1) together. a4 is U(-pi, pi) in half of its cases and 0 in the others, as in EDM's
released code; programs written after the paper's table have the uniform part alone.

All but the flips are one bicubic resampling of the image reflected at its borders (ours, the filter
that torch has): EDM samples bilinearly at twice the resolution, between two wavelet filters. The
kernel is off by less than 0.05 pixels along each axis. Images that are not moved pass unchanged.
Labels of zeros stand for such an image, which is what sampling asks for. Plain mirror images, of
which the network is not told, are an option of the data: `horizontal_flip`.
Source: Karras et al., arXiv 2206.00364, Appendix F.2 and Table 6.
Axes: B batch, C channels, H and W pixels.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from scm_lightning.core import at_least_float32, standard_normal

LOG2_SCALE_STD = 0.2
"""Standard deviation of the base-2 logarithm of scale, and of stretching."""
TRANSLATION_STD = 0.125
"""Standard deviation of a translation, as a share of the image's side."""
ROTATED_STRETCH_PROBABILITY = 0.5


class Augmentation:
    """EDM's pipeline for CIFAR-10: flips, scale, rotation, stretching, translation.

    Args:
        p: probability of each transformation but the horizontal flip, which has 1/2.

    Raises:
        ValueError: if `p` is not a probability.

    Source: arXiv 2206.00364, Appendix F.2.
    """

    def __init__(self, p: float = 0.12) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability from 0 to 1, got {p}; EDM's is 0.12")
        self.p = p

    def __call__(
        self, x0: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            x0: images. (B, C, H, W), any unit.
            generator: source of random numbers; None for torch's global state.

        Returns:
            Images like `x0`, and labels that say what was done. (B, 9), float32 or wider.

        Raises:
            ValueError: if the samples are not images.
        """
        if x0.ndim != 4:
            raise ValueError(
                f"augmentation takes images (B, C, H, W), got samples of shape "
                f"{tuple(x0.shape[1:])}; train without it"
            )
        a = self.draw(x0, generator)
        return transform_images(x0, a), augmentation_labels(a)

    def draw(self, x0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a0 to a7 for every image.

        Args:
            x0: images, for their number, device and type. (B, C, H, W).
            generator: source of random numbers; None for torch's global state.

        Returns:
            Parameters. (B, 8), float32 or wider.
        """
        uniform = _uniform(x0, 9, generator)
        happens = uniform[:, :7].new_tensor(
            [0.5, self.p / 2, *[self.p] * 4, ROTATED_STRETCH_PROBABILITY]
        )
        x_flip, y_flip, scaled, turned, stretched, moved, oblique = (
            (uniform[:, :7] < happens).to(uniform.dtype).unbind(1)
        )
        a3, a4 = (math.pi * (2 * uniform[:, 7:] - 1)).unbind(1)
        a2, a5, a6, a7 = standard_normal(
            (len(x0), 4), generator, dtype=uniform.dtype, device=x0.device
        ).unbind(1)
        drawn = (a2 * scaled, a3 * turned, a4 * oblique * stretched, a5 * stretched)
        return torch.stack([x_flip, y_flip, *drawn, a6 * moved, a7 * moved], dim=1)


def augmentation_labels(a: Tensor) -> Tensor:
    """Labels that tell the network how each image was changed.

    Args:
        a: parameters a0 to a7 of `Augmentation.draw`. (B, 8).

    Returns:
        Labels, zero where nothing was done. (B, 9).
    """
    a0, a1, a2, a3, a4, a5, a6, a7 = a.unbind(1)
    turn, stretch = (a3.cos() - 1, a3.sin()), (a5 * a4.cos(), a5 * a4.sin())
    return torch.stack([a0, a1, a2, *turn, *stretch, a6, a7], dim=1)


def transform_images(x0: Tensor, a: Tensor) -> Tensor:
    """Flip, scale, turn, stretch and move images.

    Args:
        x0: images. (B, C, H, W), any unit.
        a: parameters a0 to a7 of `Augmentation.draw`. (B, 8).

    Returns:
        Images like `x0`.
    """
    x0 = _flip(_flip(x0, a[:, 0] != 0, axis=-1), a[:, 1] != 0, axis=-2)
    _, _, a2, a3, a4, a5, a6, a7 = a.unbind(1)
    shrink = torch.exp2(-LOG2_SCALE_STD * a2)[:, None, None]
    unstretch = torch.diag_embed(torch.exp2(-LOG2_SCALE_STD * torch.stack([a5, -a5], dim=1)))
    # From the pixels of the result back to those that they show.
    inverse = shrink * _rotation(-a3) @ _rotation(a4) @ unstretch @ _rotation(-a4)
    half_sides = a.new_tensor([x0.shape[3] / 2, x0.shape[2] / 2])
    linear = inverse * half_sides / half_sides[:, None]  # grids have sides of length 2
    shift = 2 * TRANSLATION_STD * torch.stack([a6, a7], dim=1)
    theta = torch.cat([linear, -linear @ shift[:, :, None]], dim=2)
    grid = affine_grid(theta, list(x0.shape), align_corners=False)
    resampled = grid_sample(
        x0.to(grid.dtype), grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    moved = (a[:, 2:] != 0).any(dim=1)[:, None, None, None]
    return torch.where(moved, resampled.to(x0.dtype), x0)


def _rotation(angle: Tensor) -> Tensor:
    """Matrices that turn counterclockwise where y points down. (B,) radians to (B, 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, sin, -sin, cos], dim=1).reshape(-1, 2, 2)


def _flip(x0: Tensor, chosen: Tensor, axis: int) -> Tensor:
    """Mirror the chosen images, (B,) bool, exactly."""
    return torch.where(chosen[:, None, None, None], x0.flip(axis), x0)


def _uniform(x0: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in [0, 1) for every image, drawn where the generator is. (B, num)."""
    device = x0.device if generator is None else generator.device
    dtype = at_least_float32(x0).dtype
    drawn = torch.rand(len(x0), num, generator=generator, dtype=dtype, device=device)
    return drawn.to(x0.device)
