# SPDX-License-Identifier: Apache-2.0
"""Files in which NVIDIA published its networks, and the same weights as safetensors."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scm_lightning.core import at_least_float32
from scm_lightning.given_files import given_path
from scm_lightning.storage.persistent_pickle import PersistentObject, read_persistent
from scm_lightning.storage.tensor_file import opened_tensors


class Published(NamedTuple):
    """Network of a published file.

    Attributes:
        name: name of the file.
        class_name: name of its class; empty for safetensors, which hold weights alone.
        tensors: weights and buffers by their published names, float32 or wider.
        record: its other attributes; None for safetensors.
    """

    name: str
    class_name: str
    tensors: Mapping[str, Tensor]
    record: PersistentObject | None

    def attribute(self, name: str, otherwise: Any) -> Any:
        """An attribute of the network, or another value if the file holds weights alone.

        Raises:
            ValueError: if it has no such attribute; the message is the reason alone.
        """
        return otherwise if self.record is None else self.record.attribute(name)


def read_published(path: str | os.PathLike[str]) -> Published:
    """Read a published network without running code of the file.

    Args:
        path: a pickle as published, or a .safetensors file of its weights by their names.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is of another kind, damaged or hostile.
    """
    file = Path(given_path(path))
    if file.suffix != ".safetensors":
        record = read_persistent(file).ema
        try:
            return Published(file.name, record.class_name, record.state_dict(), record)
        except ValueError as error:
            raise ValueError(
                f"{file} must hold a whole network: {error}; take the file from its makers' page"
            ) from error
    with opened_tensors(file) as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if bad := [name for name, each in tensors.items() if not bool(torch.isfinite(each).all())]:
        raise ValueError(f"{file}: its weight {bad[0]} is not finite; take another file")
    floats = {name: at_least_float32(each) for name, each in tensors.items()}
    return Published(file.name, "", floats, None)
