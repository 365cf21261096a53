# SPDX-License-Identifier: Apache-2.0
"""Arrays and numbers of numpy in a pickle, read as data: numeric kinds, with all their bytes."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scm_lightning.storage.inert_pickle import Built, Global, Maker, Once

KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
"""Numbers that torch knows too."""
NATIVE = ("<", "|", "=")


class Kind(Built):
    """Kind of numbers, a numpy.dtype.

    Args:
        name: one of `KINDS`.
    """

    def __init__(self, name: str) -> None:
        self.dtype = np.dtype(f"<{name}")

    def build(self, state: Any) -> None:
        """Take the byte order; fields and subarrays are refused."""
        match state:
            case (3, str(order), None, None, None, -1, -1, 0) if order in NATIVE:
                return
        raise ValueError("it has an array of other than plain little-endian numbers")


class Array(Built):
    """An array, empty until its state comes."""

    def __init__(self) -> None:
        self.found: Tensor | None = None

    def build(self, state: Any) -> None:
        """Take shape, kind and bytes."""
        match state:
            case (1, tuple(shape), Kind() as kind, bool(columns), Once() as once):
                pass
            case _:
                raise ValueError("it has an array of another form than numpy writes")
        if any(type(each) is not int or each < 0 for each in shape):
            raise ValueError("it has an array with a size that is not a count")
        content = _bytes(once, kind, math.prod(shape))
        numbers = np.ndarray(shape, kind.dtype, content, order="F" if columns else "C")
        self.found = torch.from_numpy(numbers.copy(order="C"))

    def tensor(self) -> Tensor:
        """The numbers as a tensor.

        Raises:
            ValueError: if there are none; the message is the reason alone.
        """
        if self.found is None:
            raise ValueError("it has an array without numbers")
        return self.found


def _bytes(once: Once, kind: Kind, num: int) -> bytes:
    content = once.take()
    if not isinstance(content, bytes) or len(content) != num * kind.dtype.itemsize:
        raise ValueError(f"it has an array of {num:,} numbers with the bytes of another")
    return content


def _kind(arguments: tuple[Any, ...]) -> Kind:
    match arguments:
        case (str(name), bool(), bool()) if name in KINDS:
            return Kind(name)
        case (str(name), *_):
            raise ValueError(f"it has an array of kind {name[:40]}, which are not numbers")
    raise ValueError("it has an array of another kind than numbers")


def _number(arguments: tuple[Any, ...]) -> float | int | bool:
    match arguments:
        case (Kind() as kind, Once() as once):
            found = np.frombuffer(_bytes(once, kind, 1), kind.dtype)[0].item()
            assert isinstance(found, float | int | bool)
            return found
    raise ValueError("it has a number of another form than numpy writes")


def _array(arguments: tuple[Any, ...]) -> Array:
    match arguments:
        case (Global("numpy", "ndarray"), (0,), Once()):
            return Array()
    raise ValueError("it has an array of another form than numpy writes")


def _never(arguments: tuple[Any, ...]) -> None:
    raise ValueError("it makes an array by its class")


ARRAY_MAKERS: dict[tuple[str, str], Maker] = {
    ("numpy", "dtype"): _kind,
    ("numpy", "ndarray"): _never,
    **{(f"numpy.{core}.multiarray", "scalar"): _number for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
}
"""Names of numpy before and since version 2."""
