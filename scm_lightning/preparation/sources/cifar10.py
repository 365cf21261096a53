# SPDX-License-Identifier: Apache-2.0
r"""CIFAR-10 as it is handed out: five files of training images and one of test images.

    cifar-10-python.tar.gz, or the folder cifar-10-batches-py

The files are pickles. A pickle is a program that can call anything, so none is run: its
instructions are listed, and the numbers after the text `labels` and the one long text, an array's
bytes, are what is looked for. A program that names anything but an array of numpy is refused.

The data are (N, 3072) uint8: a row is an image's 1,024 red values, then green, then blue.
Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import io
import pickletools
import tarfile
from pathlib import Path

import numpy as np

from scm_lightning.data.shards import Array
from scm_lightning.given_files import read_regular
from scm_lightning.preparation.sources.gzipped import read_gzip
from scm_lightning.preparation.sources.source import ArraySource

FOLDER = "cifar-10-batches-py"
BATCHES = (*[f"data_batch_{number}" for number in range(1, 6)], "test_batch")
CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SIDE = 32
MAX_BATCH_BYTES = 1 << 26
"""Largest file: twice the size of a real one."""
MAX_ARCHIVE_BYTES = 1 << 28
"""Largest archive; the files of the real one have 186 million bytes together."""
NAMES = (
    *("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"),
    *("numpy ndarray", "numpy dtype", "_codecs encode"),
)
"""Names in a pickled array of numpy, and in bytes of Python 3 in a pickle of protocol 2."""
NAMING = ("GLOBAL", "INST", "STACK_GLOBAL")
WHOLE_NUMBERS = ("BININT", "BININT1", "BININT2")


def open_cifar10(path: Path) -> ArraySource:
    """Read CIFAR-10; the test images are the held-out ones.

    Args:
        path: the archive, the folder of the files, or the folder above.

    Raises:
        ValueError: if a file is missing, damaged, or a pickle of other things.
    """
    images, items, contents = [], [], _contents(path)
    for name in BATCHES:
        if name not in contents:
            raise ValueError(f"{path} must hold {FOLDER}/{name}, which is missing; get it again")
        data, labels = read_batch(contents[name], f"{name} of {path}")
        images.append(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        split = "heldout" if name == "test_batch" else "train"
        items += [(f"{name}/{n:05d}", label, split) for n, label in enumerate(labels)]
    return ArraySource("cifar10", path, CLASS_NAMES, items, np.concatenate(images))


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
    raw, labels, of_labels, in_columns, raw_in_columns = b"", list[int](), False, False, False
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in NAMING and argument not in NAMES:
                raise ValueError(f"the name {argument} is refused")
            if of_labels and opcode.name in WHOLE_NUMBERS and isinstance(argument, int):
                labels.append(argument)
            elif isinstance(argument, (str, bytes)) and opcode.name not in NAMING:
                text = argument.encode("latin1") if isinstance(argument, str) else argument
                if text != b"latin1":  # by which Python 3 writes bytes
                    of_labels = text == b"labels"
                if len(text) > len(raw):
                    raw, raw_in_columns = text, in_columns
            elif opcode.name in ("NEWTRUE", "NEWFALSE"):  # the last one before an array's bytes
                in_columns = opcode.name == "NEWTRUE"
        if not labels or len(raw) != 3 * SIDE * SIDE * len(labels):
            raise ValueError(f"it has {len(labels)} labels and an array of {len(raw)} bytes")
        if not all(0 <= label < len(CLASS_NAMES) for label in labels):
            raise ValueError("it has labels that are not numbers from 0 to 9")
    except ValueError as error:
        raise ValueError(
            f"{where} must be one of CIFAR-10's files, got another ({error}); get it again from "
            "where it is handed out"
        ) from error
    pixels = np.frombuffer(raw, np.uint8)
    return pixels.reshape((len(labels), -1), order="F" if raw_in_columns else "C"), labels


def _contents(path: Path) -> dict[str, bytes]:
    """Contents of the files that are there, by name."""
    try:
        if path.is_dir():
            folder = path / FOLDER if (path / FOLDER).is_dir() else path
            there = [name for name in BATCHES if (folder / name).exists()]
            return {name: read_regular(folder / name, MAX_BATCH_BYTES) for name in there}
        # Unpacked first, since tarfile reads headers of any size that they claim.
        content, found = io.BytesIO(read_gzip(path, MAX_ARCHIVE_BYTES)), {}
        with tarfile.open(fileobj=content, mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./").removeprefix(f"{FOLDER}/")
                opened = archive.extractfile(member) if member.isreg() else None
                if name in BATCHES and opened is not None:
                    found[name] = opened.read(MAX_BATCH_BYTES)
        return found
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{path} must be CIFAR-10's files: {error}; get it again") from error
