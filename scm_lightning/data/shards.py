# SPDX-License-Identifier: Apache-2.0
"""Webdataset shards: tar files of samples, written whole and read as a stream.

A sample is two members of the file: `KEY.x.npy` (one array) and `KEY.cls` (one whole number);
others are passed over. Nothing is written to the disk while reading, and nothing unpickled. Links,
devices and members larger than a sample can be are damage, so a hostile file cannot fill the
memory.

The checksum in the index is that of the whole file. It is computed of the bytes as they stream by,
and compared before the last sample is handed out.
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
from scm_lightning.data.location import is_remote, reason_of
from scm_lightning.given_files import open_regular
from scm_lightning.whole_files import written_whole

Array = np.ndarray[Any, Any]

ARRAY, LABEL = "x.npy", "cls"
MAX_MEMBER_BYTES = 1 << 28
"""Largest sample: an array of 64 million float32."""
BLOCK_BYTES = 1 << 20


class Sample(NamedTuple):
    """One decoded sample: its array as stored, its class and its key."""

    array: Array
    label: int
    key: str


class DamagedError(ValueError):
    """A file that is missing, breaks off or is not what the index lists; names it and says why."""


def write_shard(file: Path, samples: Iterable[tuple[str, Array, int]]) -> Shard:
    """Write samples into one file, which appears whole or not at all.

    Equal samples give equal bytes.

    Args:
        file: path of the file.
        samples: key, array and class of each.

    Returns:
        Entry of the file for the index.
    """
    num_samples = 0
    with written_whole(file) as beside, beside.open("wb") as opened:
        hashed = _Hashed(opened)
        # A stream, since a path that begins like a command would be run. A whole number as the
        # time, because tar needs a header more for fractions of a second.
        with webdataset.TarWriter(hashed, mtime=0, user="scm", group="scm") as writer:
            for key, array, label in samples:
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                members = {ARRAY: buffer.getvalue(), LABEL: str(label).encode()}
                writer.write({"__key__": key, **members})
                num_samples += 1
    return Shard(file.name, num_samples, hashed.num_bytes, hashed.sha256.hexdigest())


def read_shard(place: str, listed: Shard | None = None) -> Iterator[Sample]:
    """Read the samples of one file in their order.

    Args:
        place: path or address; see `data/location.py`.
        listed: what the content is compared with, once the file is read to its end.

    Raises:
        ValueError: if a sample cannot be decoded, or the file breaks off; in place of the last
            sample, if the content is not what is listed. Names file and sample.
    """
    key = ""
    try:
        with _opened(place) as opened:
            stream = opened if listed is None else _Hashed(opened)
            members: dict[str, bytes] = {}
            for name, content in _members(stream):
                prefix, _, kind = name.partition(".")
                if members and (prefix != key or kind in members):
                    yield _decode(key, members, place)
                    members = {}
                key = prefix
                members[kind] = content if kind in (ARRAY, LABEL) else b""
            if isinstance(stream, _Hashed) and listed is not None:
                stream.compare(listed, place)
            if members:
                yield _decode(key, members, place)
    except DamagedError:
        raise
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        after = f" after sample {key}" if key else ""
        raise damaged(place, f"it breaks off{after}: {reason_of(error)}") from error


def damaged(place: str, reason: str, key: str = "") -> DamagedError:
    """Make the error for a damaged shard.

    Args:
        place: path or address of the shard.
        reason: what is wrong.
        key: of the sample that is meant; empty for the shard.
    """
    what = f"sample {key} of shard {place}" if key else f"shard {place}"
    return DamagedError(f"{what} is damaged: {reason}; prepare the shards again")


class _Hashed:
    """A stream of which the bytes are counted and hashed as they pass.

    Args:
        stream: what is read or written through it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """Read, as of the stream."""
        content = self.stream.read(size)
        self._pass(content)
        return content

    def write(self, content: bytes) -> int:
        """Write, as of the stream."""
        self._pass(content)
        return self.stream.write(content)

    def compare(self, listed: Shard, place: str) -> None:
        """Read to the end, or beyond the listed size, and compare.

        Raises:
            ValueError: if the content is another.
        """
        while self.num_bytes <= listed.num_bytes and self.read(BLOCK_BYTES):
            pass
        if self.sha256.hexdigest() != listed.sha256:
            raise damaged(
                place,
                f"its content does not have the listed SHA-256, {listed.sha256[:12]}..., so any "
                f"of its {listed.num_samples} samples may be wrong",
            )

    def _pass(self, content: bytes) -> None:
        self.num_bytes += len(content)
        self.sha256.update(content)


def _opened(place: str) -> BinaryIO:
    if not is_remote(place):
        return open_regular(place)
    stream: BinaryIO = webdataset.gopen(place)
    return stream


def _members(stream: "BinaryIO | _Hashed") -> Iterator[tuple[str, bytes]]:
    """Names and contents of the plain files in an uncompressed tar stream.

    Reads the headers one by one: tarfile's own stream is half as fast, and ends silently at a
    damaged header.
    """
    while (block := stream.read(tarfile.BLOCKSIZE)) and any(block):
        member = tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
        plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
        if not plain or not 0 <= member.size <= MAX_MEMBER_BYTES:
            raise ValueError(
                f"member {member.name!r} is not a file of at most {MAX_MEMBER_BYTES} bytes"
            )
        num_blocks = -(-member.size // tarfile.BLOCKSIZE)
        content = stream.read(num_blocks * tarfile.BLOCKSIZE)
        if len(content) < member.size:
            raise EOFError(f"member {member.name!r} has {len(content)} of {member.size} bytes")
        yield member.name, content[: member.size]


def _decode(key: str, members: dict[str, bytes], place: str) -> Sample:
    """Decode the members of one sample; webdataset's own decoder would unpickle some."""
    if missing := {ARRAY, LABEL} - members.keys():
        raise damaged(place, f"it has no member {' and '.join(sorted(missing))}", key)
    try:
        return Sample(_array(members[ARRAY]), int(members[LABEL]), key)
    except (ValueError, EOFError, OSError, SyntaxError, tokenize.TokenError) as error:
        raise damaged(place, f"it cannot be decoded: {error}", key) from error


def _array(content: bytes) -> Array:
    """The array of a file in numpy's format, as it stands in that memory.

    Raises:
        ValueError: if it is not an array, is damaged, or holds objects.
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
