# SPDX-License-Identifier: Apache-2.0
"""Webdataset shards: tar files of samples, written whole and read as a stream.

A sample is two members of the file: `KEY.x.npy` (one array) and `KEY.cls` (one whole number);
others are passed over. Nothing is written to the disk while reading, and nothing unpickled. Links,
devices and members larger than a sample can be are damage, so a hostile file cannot fill the
memory.
"""

import hashlib
import io
import tarfile
import tokenize
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import webdataset

from scm_lightning.data.index import Shard
from scm_lightning.data.location import is_remote
from scm_lightning.given_files import open_regular
from scm_lightning.whole_files import written_whole

Array = np.ndarray[Any, Any]

ARRAY, LABEL = "x.npy", "cls"
MAX_MEMBER_BYTES = 1 << 28
"""No sample is larger: an array of 64 million float32."""
CHUNK_BYTES = 1 << 20


class Sample(NamedTuple):
    """One decoded sample: its array as stored, its class and its key."""

    array: Array
    label: int
    key: str


class Damage(NamedTuple):
    """A sample that cannot be used, and why."""

    reason: str
    key: str


class BrokenShardError(ValueError):
    """A file that is missing, no tar file, or breaks off."""


class ChecksumError(ValueError):
    """A file whose samples can be read, and whose content is another than the index says."""


class _Hashed:
    """A stream that hashes what is read of it.

    Args:
        stream: what is read from.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.sha256 = hashlib.sha256()

    def read(self, num_bytes: int) -> bytes:
        """Read that many bytes, or up to the end."""
        content = self.stream.read(num_bytes)
        self.sha256.update(content)
        return content

    def hexdigest(self) -> str:
        """Checksum of all of the stream, the rest of which is read."""
        while self.read(CHUNK_BYTES):
            pass
        return self.sha256.hexdigest()


def write_shard(file: Path, samples: Iterable[tuple[str, Array, int]]) -> Shard:
    """Write samples into one file, which appears whole or not at all.

    Equal samples give equal bytes.

    Args:
        file: where to.
        samples: key, array and class of each.

    Returns:
        What the index says of the file.
    """
    num_samples = 0
    with written_whole(file) as beside:
        # A whole number as the time, because tar needs a header more for fractions of a second.
        # An opened file, because a name could be taken for a command, which a shell would run.
        with (
            beside.open("wb") as opened,
            webdataset.TarWriter(opened, mtime=0, user="scm", group="scm") as writer,
        ):
            for key, array, label in samples:
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                members = {ARRAY: buffer.getvalue(), LABEL: str(label).encode()}
                writer.write({"__key__": key, **members})
                num_samples += 1
        content = beside.read_bytes()
    return Shard(file.name, num_samples, len(content), hashlib.sha256(content).hexdigest())


def read_shard(place: str, sha256: str = "") -> Iterator[Sample | Damage]:
    """Read the samples of one file in their order.

    Args:
        place: path or address; see `data/location.py`.
        sha256: checksum to compare with that of the file, once all of it is read; empty for none.

    Yields:
        Every sample, and damage in the place of one that cannot be decoded.

    Raises:
        BrokenShardError: where the file breaks off, after all before it.
        ChecksumError: after the last sample, if the checksum does not fit.
    """
    key = ""
    try:
        with _opened(place) as opened:
            stream = _Hashed(opened) if sha256 else opened
            members: dict[str, bytes] = {}
            for name, content in _members(stream):
                prefix, _, kind = name.partition(".")
                if members and (prefix != key or kind in members):
                    yield _decode(key, members)
                    members = {}
                key = prefix
                members[kind] = content
            if members:
                yield _decode(key, members)
            found = stream.hexdigest() if isinstance(stream, _Hashed) else sha256
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        after = f" after sample {key}" if key else ""
        raise BrokenShardError(f"it breaks off{after}: {error}") from error
    if found != sha256:
        raise ChecksumError(f"its SHA-256 must be {sha256}, as the index has it, got {found}")


def _opened(place: str) -> BinaryIO:
    if not is_remote(place):
        return open_regular(place)
    stream: BinaryIO = webdataset.gopen(place)
    return stream


def _members(stream: BinaryIO | _Hashed) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the plain files in an uncompressed tar stream.

    Reads the headers one by one: tarfile's own stream is half as fast, and ends without a word at a
    header that is damaged.
    """
    while (block := stream.read(tarfile.BLOCKSIZE)) and any(block):
        member = tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
        plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
        if not plain or not 0 <= member.size <= MAX_MEMBER_BYTES:
            raise ValueError(
                f"member {member.name!r} is no plain file of at most {MAX_MEMBER_BYTES} bytes"
            )
        num_blocks = -(-member.size // tarfile.BLOCKSIZE)
        content = stream.read(num_blocks * tarfile.BLOCKSIZE)
        if len(content) < member.size:
            raise EOFError(f"member {member.name!r} has {len(content)} of {member.size} bytes")
        yield member.name, content[: member.size]


def _decode(key: str, members: dict[str, bytes]) -> Sample | Damage:
    """Decode the members of one sample; webdataset's own decoder would unpickle some."""
    if missing := {ARRAY, LABEL} - members.keys():
        return Damage(f"has no member {' and '.join(sorted(missing))}", key)
    try:
        return Sample(_array(members[ARRAY]), int(members[LABEL]), key)
    except (ValueError, EOFError, OSError, SyntaxError, tokenize.TokenError) as error:
        return Damage(f"cannot be decoded: {error}", key)


def _array(content: bytes) -> Array:
    """The array of a file in numpy's format, as it stands in that memory.

    Raises:
        ValueError: if it is none, or damaged, or of objects.
    """
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("the array's format must have version 1.0")
    start = stream.tell() + 2 + int.from_bytes(content[stream.tell() : stream.tell() + 2], "little")
    shape, fortran_order, dtype = _header(content[stream.tell() : start])
    if dtype.hasobject or fortran_order:
        raise ValueError(f"the array must be of numbers in C order, got {dtype}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=8)
def _header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type. Parsed once, since all samples of a set have the same."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(header))
