# SPDX-License-Identifier: Apache-2.0
r"""CIFAR-10 as it is handed out: five files of training images and one of test images.

    cifar-10-python.tar.gz, or the folder cifar-10-batches-py

The files are pickles. A pickle is a program that can call anything; here none is run. Its
instructions are looked through first, and only those that build numbers, texts, lists and
dictionaries pass. Of the calls three pass, those that a pickled array of numpy makes, and they go
to the stand-ins below, so that not even numpy takes part.

The data are (N, 3072) uint8: a row is an image's 1,024 red values, then green, then blue.
Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import io
import math
import pickle
import pickletools
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np

from scm_lightning.data.shards import Array
from scm_lightning.data.sources.gzipped import read_gzip
from scm_lightning.data.sources.source import InMemorySource, Item
from scm_lightning.given_files import read_regular

FOLDER = "cifar-10-batches-py"
BATCHES = (*[f"data_batch_{number}" for number in range(1, 6)], "test_batch")
CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SIDE = 32
MAX_BATCH_BYTES = 1 << 26
"""Twice the size of a real file."""
MAX_ARCHIVE_BYTES = 1 << 28
"""The files of the real archive have 186 million bytes together."""
OPCODES = frozenset(
    (
        *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
        *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "BUILD"),
    )
)
"""Instructions of protocol 2 that cannot do harm, `GLOBAL`, `REDUCE` and `BUILD` apart."""


@final
class Cifar10Source(InMemorySource):
    """CIFAR-10; the test images are the held-out ones.

    Args:
        path: the archive, the folder of the files, or the folder above.

    Raises:
        ValueError: if a file is missing, damaged, or a pickle of other things.
    """

    kind = "cifar10"

    def __init__(self, path: Path) -> None:
        super().__init__(path, CLASS_NAMES)

    def _read(self) -> tuple[list[Item], Array]:
        images, items = [], []
        for name, content in _batches(self.path):
            data, labels = read_batch(content, f"{name} of {self.path}")
            images.append(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
            split = "heldout" if name == "test_batch" else "train"
            items += [Item(f"{name}/{n:05d}", label, split) for n, label in enumerate(labels)]
        return items, np.concatenate(images)


def read_batch(content: bytes, where: str) -> tuple[Array, list[int]]:
    """Read one of the pickled files.

    Args:
        content: bytes of the file.
        where: what to call it in errors.

    Returns:
        Pixels, (N, 3072) uint8, and labels.

    Raises:
        ValueError: if it is a pickle of other things, or damaged.
    """
    try:
        _check_opcodes(content)
        # Texts of Python 2 come as bytes.
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        batch = {k.decode() if isinstance(k, bytes) else k: value for k, value in batch.items()}
        pixels, labels = batch["data"].pixels, batch["labels"]
        if pixels.shape != (len(labels), 3 * SIDE * SIDE) or type(labels) is not list:
            raise ValueError(f"it has pixels of shape {pixels.shape} and {len(labels)} labels")
        if not all(type(n) is int and 0 <= n < len(CLASS_NAMES) for n in labels):
            raise ValueError("it has labels that are no numbers from 0 to 9")
    # Whatever a pickle of wrong things comes to: it can fail in any way, but not act.
    except Exception as error:
        raise ValueError(
            f"{where} must be one of CIFAR-10's files, got another ({error}); get it again from "
            "where it is handed out"
        ) from error
    return pixels, labels


class _Dtype:
    """Stands in for numpy.dtype: unsigned bytes and no other."""

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        if name not in ("u1", b"u1", "|u1", b"|u1"):
            raise pickle.UnpicklingError(f"an array of type {name!r} is refused")

    def __setstate__(self, state: Any) -> None:
        """Unsigned bytes have no byte order to set."""


class _Pixels:
    """Stands in for numpy.ndarray: two axes of unsigned bytes."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        right = isinstance(dtype, _Dtype) and isinstance(raw, bytes) and len(shape) == 2
        if not right or min(shape) < 0 or math.prod(shape) != len(raw):
            raise pickle.UnpicklingError("an array that is no table of bytes is refused")
        order: Any = "F" if is_fortran else "C"
        self.pixels = np.frombuffer(raw, np.uint8).reshape(shape, order=order)


def _new_array(kind: Any, shape: Any, code: Any) -> _Pixels:
    """Stands in for numpy's function that makes the array which a state then fills."""
    return _Pixels()


def _encode(text: Any, encoding: Any) -> bytes:
    """Stands in for codecs.encode, by which Python 3 writes bytes in protocol 2."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is refused")
    return str(text).encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,
    ("numpy", "ndarray"): _Pixels,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Refuses every name but those of an array."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up a stand-in."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"the name {module}.{name} is refused")
        return _STAND_INS[module, name]


def _check_opcodes(content: bytes) -> None:
    """Refuse instructions that these files do not need; some can take any amount of memory."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in OPCODES:
            raise pickle.UnpicklingError(f"the instruction {opcode.name} is refused")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(content):
            raise pickle.UnpicklingError("a memory of this size is refused")


def _batches(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the six files, in their order."""
    if path.is_dir():
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        for name in BATCHES:
            try:
                yield name, read_regular(folder / name, MAX_BATCH_BYTES)
            except (OSError, ValueError) as error:
                raise ValueError(f"{folder} must hold {name}: {error}; unpack it again") from error
        return
    found: dict[str, bytes] = {}
    try:
        # Unpacked first, since tarfile reads headers of any size that they claim.
        content = io.BytesIO(read_gzip(path, MAX_ARCHIVE_BYTES))
        with tarfile.open(fileobj=content, mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./").removeprefix(f"{FOLDER}/")
                if name in BATCHES and member.isreg() and member.size <= MAX_BATCH_BYTES:
                    opened = archive.extractfile(member)
                    assert opened is not None
                    found[name] = opened.read()
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} must be CIFAR-10's archive: {error}; get it again") from error
    for name in BATCHES:
        if name not in found:
            raise ValueError(f"{path} must hold {FOLDER}/{name}, which is missing; get it again")
        yield name, found[name]
