# SPDX-License-Identifier: Apache-2.0
"""The one check that every network makes of its input."""

from torch import Tensor, nn


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
