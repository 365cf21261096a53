# SPDX-License-Identifier: Apache-2.0
"""Conditions of samples as shards hold them: what the index declares of each.

A condition is a member of its sample, named like the keyword parameter of the network that takes
it: `KEY.text.npy` is an array, `KEY.image.png` a picture.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scm_lightning.core.conditions import LABELS, MASK
from scm_lightning.data.location import place_of, read_file
from scm_lightning.data.members import Array, array_bytes, array_of
from scm_lightning.whole_files import written_whole

PICTURE = "uint8"
"""Type of a condition that is a picture of 8 bits, in a PNG file."""
CONDITION_DTYPES = (PICTURE, "float16", "float32", "int64")
MAX_CONDITION_BYTES = 1 << 28
"""Largest condition of one sample."""
MAX_LENGTH = 1 << 14
"""Longest of varying length: every sample is padded to the longest that is declared."""
MAX_NAME = 40
"""Longest name: that of a member must fit in the header of a tar file."""
TAKEN = {"x", "cls", "txt", "u", "t", "t_end", "guidance", "augment", LABELS}
"""Names of other members, and of a network's other parameters."""


@dataclass(frozen=True)
class StoredCondition:
    """A condition that every sample of a set has.

    Args:
        shape: shape of one sample's: of a picture (C, H, W), with 1 or 3 channels; of a varying
            condition the longest, (L, ...).
        dtype: type of the stored numbers: float16 or float32, which reach the network as float32;
            int64; or uint8 for pictures, which reach it as float32 in [-1, 1].
        varying: whether samples have it in different lengths, from 0 to L on the first axis, like
            the tokens of a text. The network gets all of them padded to L, and `NAME_mask`.
        null_sha256: checksum of `null.NAME.npy` beside the index: what stands for none of it, such
            as the embedding of an empty prompt. Empty for zeros.
        encoder: what the condition was made by, such as the name of a text encoder.
        encoder_sha256: checksum of the encoder's weights.

    Raises:
        ValueError: if type and shape do not fit.
    """

    shape: tuple[int, ...]
    dtype: str
    varying: bool = False
    null_sha256: str = ""
    encoder: str = ""
    encoder_sha256: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in CONDITION_DTYPES:
            raise ValueError(
                f"a condition must be of a type of {CONDITION_DTYPES}, got {self.dtype!s:.20}"
            )
        if self.is_picture and (
            len(self.shape) != 3 or self.shape[0] not in (1, 3) or self.varying
        ):
            raise ValueError(
                f"a condition of type {PICTURE} must be a picture of shape (1, H, W) or (3, H, W), "
                f"got {self.shape!s:.60}{' of varying length' * self.varying}"
            )
        if self.varying and not () < self.shape[:1] <= (MAX_LENGTH,):
            raise ValueError(
                f"a condition of varying length must have at most {MAX_LENGTH:,} parts, got shape "
                f"{self.shape!s:.60}"
            )
        if self.num_bytes > MAX_CONDITION_BYTES:
            raise ValueError(
                f"a condition must have at most {MAX_CONDITION_BYTES:,} bytes per sample, got "
                f"shape {self.shape!s:.60} of {self.dtype}"
            )

    @property
    def is_picture(self) -> bool:
        """Tell whether it is stored as a PNG file."""
        return self.dtype == PICTURE

    @property
    def num_bytes(self) -> int:
        """Size of the largest that a sample can have."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def member(self, name: str) -> str:
        """End of the name of its members."""
        return f"{name}.png" if self.is_picture else f"{name}.npy"

    def misfit(self, array: Array) -> str:
        """Say what is wrong with an array that is to be a sample's; empty for nothing."""
        longest, dtype = self.shape, np.dtype(self.dtype)
        fits = array.shape == longest
        if self.varying:
            fits = array.shape[1:] == longest[1:] and array.ndim and len(array) <= longest[0]
        if not fits or array.dtype != dtype:
            most = "at most " if self.varying else ""
            return (
                f"must have {most}shape {longest} and type {dtype}, got {array.shape} and "
                f"{array.dtype}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return "holds numbers that are not finite"
        return ""

    def batched(self, name: str, arrays: Iterable[Array]) -> dict[str, Tensor]:
        """Tensors of a batch, by name: (B, *shape), and if varying its mask, (B, L) bool.

        Args:
            name: name of the condition.
            arrays: as stored, of each sample.
        """
        if not self.varying:
            return {name: self._for_networks(np.stack([*arrays]))}
        parts = [*arrays]
        padded = np.zeros((len(parts), *self.shape), self.dtype)
        mask = torch.zeros(len(parts), self.shape[0], dtype=torch.bool)
        for row, part in enumerate(parts):
            padded[row, : len(part)] = part
            mask[row, : len(part)] = True
        return {name: self._for_networks(padded), name + MASK: mask}

    def _for_networks(self, stored: Array) -> Tensor:
        x = torch.from_numpy(stored)
        if self.is_picture:
            return x.float() / 127.5 - 1
        return x if x.dtype == torch.int64 else x.float()


def check_name(name: str) -> None:
    """Refuse a name that no condition can have.

    Raises:
        ValueError: if it is not plain, is taken, or is that of a mask.
    """
    plain = re.fullmatch(rf"[a-z]\w{{0,{MAX_NAME - 1}}}", name, re.ASCII)
    if not plain or name in TAKEN or name.endswith(MASK):
        raise ValueError(
            f"a condition must have the name of a network's parameter: up to {MAX_NAME} plain "
            f"letters, none of {', '.join(sorted(TAKEN))}, not ending with {MASK}, got {name!r:.60}"
        )


def write_null(folder: Path, name: str, null: Array) -> str:
    """Write what stands for none of a condition beside the index.

    Args:
        folder: folder of the shards.
        name: name of the condition.
        null: array like a sample's.

    Returns:
        Its checksum, for `StoredCondition.null_sha256`.
    """
    content = array_bytes(null)
    with written_whole(folder / null_file(name)) as beside:
        beside.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_nulls(root: str, conditions: Mapping[str, StoredCondition]) -> dict[str, Tensor]:
    """Read what stands for none of the conditions; those without a file have zeros.

    Args:
        root: folder or place of the shards.
        conditions: by name, as the index declares them.

    Returns:
        Tensors like one sample's, by name; masks of varying ones too.

    Raises:
        ValueError: if a file is missing, or not as declared.
    """
    nulls: dict[str, Tensor] = {}
    for name, stored in conditions.items():
        if not stored.null_sha256:
            continue
        place = place_of(root, null_file(name))
        try:
            content = read_file(place, MAX_CONDITION_BYTES + (1 << 16))
            array = array_of(content)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise ValueError(
                f"{place} cannot be read: {error}; prepare the shards again"
            ) from error
        reason = stored.misfit(array)
        if hashlib.sha256(content).hexdigest() != stored.null_sha256:
            reason = f"does not have the listed SHA-256, {stored.null_sha256[:12]}..."
        if reason:
            raise ValueError(f"{place} is damaged: it {reason}; prepare the shards again")
        nulls |= {key: x[0] for key, x in stored.batched(name, [array]).items()}
    return nulls


def null_file(name: str) -> str:
    """Plain name of the file of what stands for none of a condition."""
    return f"null.{name}.npy"
