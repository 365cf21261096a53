# SPDX-License-Identifier: Apache-2.0
"""Checks that every network makes of its sizes and its input."""

from collections.abc import Sequence
from inspect import signature

import torch
from torch import Tensor, nn


def checked_shape(
    data_shape: Sequence[int], model_channels: int, num_blocks: int
) -> tuple[int, ...]:
    """The shape of one sample, refused if no sample or no network can have such sizes.

    Args:
        data_shape: shape of one sample.
        model_channels: channels of the network.
        num_blocks: its blocks, or those of a level.

    Raises:
        ValueError: if a size is less than 1, or there is none; or if the blocks are less than none.
    """
    if num_blocks < 0:
        raise ValueError(f"num_blocks must be at least 0, got {num_blocks}; raise it")
    if not data_shape or min(data_shape) < 1:
        raise ValueError(
            f"data_shape must have sizes of at least 1, got {list(data_shape)}; set it to the "
            "shape of your data"
        )
    if model_channels < 1:
        raise ValueError(f"model_channels must be at least 1, got {model_channels}; raise it")
    return tuple(data_shape)


def check_levels(name: str, pixels: Sequence[int], sides: Sequence[int]) -> None:
    """Refuse sizes that no level of a network has: they would change nothing.

    Args:
        name: the option, for the message.
        pixels: what it asks for.
        sides: longer side of every level.

    Raises:
        ValueError: if there is no such level.
    """
    if missing := [each for each in pixels if each not in sides]:
        raise ValueError(
            f"{name} must be among the longer sides of the levels, {', '.join(map(str, sides))}, "
            f"got {', '.join(map(str, missing))}; take it out, or [] for none"
        )


def check_data_shape(network: nn.Module, u: Tensor, data_shape: tuple[int, ...]) -> None:
    """Refuse samples of another shape than a network was built for.

    Args:
        network: the network, for its name.
        u: x_t / sigma_data. (B, ...).
        data_shape: shape of one sample.

    Raises:
        ValueError: if the samples have another shape.
    """
    if u.shape[1:] != data_shape:
        raise ValueError(
            f"this {type(network).__name__} takes samples of shape {data_shape}, got "
            f"{tuple(u.shape[1:])}; set data_shape to the shape of your data"
        )


def with_image(u: Tensor, image: Tensor | None, image_channels: int) -> Tensor:
    """Samples with the channels of an image behind their own, which has no tangent.

    Args:
        u: x_t / sigma_data. (B, C, ...).
        image: what the network is given. (B, C', ...), or None.
        image_channels: channels C' that the network was built for; 0 for none.

    Raises:
        ValueError: if the image does not fit.
    """
    if image is None and not image_channels:
        return u
    if image is None or image.shape != (len(u), image_channels, *u.shape[2:]):
        got = "none" if image is None else f"one of shape {tuple(image.shape)}"
        raise ValueError(
            f"a network built with image_channels={image_channels} takes an image of "
            f"{image_channels} channels and the size of its samples, {tuple(u.shape[2:])}, got "
            f"{got}; set image_channels to that of your data's condition image, 0 for none"
        )
    return torch.cat([u, image.to(u.dtype)], dim=1)


def check_takes_end(network: nn.Module, asked_by: str) -> None:
    """Refuse a network that cannot be told where its step ends.

    Args:
        network: F(u, t, labels, guidance, t_end), or one without the last.
        asked_by: name of what passes that time, for the message.

    Raises:
        ValueError: if its forward takes no fifth argument.
    """
    call = signature(network.forward)
    try:
        call.bind_partial("u", "t", "labels", "guidance", "t_end")  # conditions come by name
    except TypeError:
        raise ValueError(
            f"{asked_by} calls its student as network(u, t, labels, guidance, t_end), but "
            f"{type(network).__name__}.forward takes ({', '.join(call.parameters)}); add t_end, "
            "(B,), or take the objective Consistency"
        ) from None
