# SPDX-License-Identifier: Apache-2.0
"""Webdataset shards: tar files of samples, written whole and read as a stream.

A sample is members of the file with one key: `KEY.x.npy` (one array), `KEY.cls` (one whole number),
and what the index declares of conditions and captions: `KEY.text.npy` (an array), `KEY.image.png`
(a picture), `KEY.txt` (a text in UTF-8). Others are passed over. Nothing is written to the disk
while reading, and nothing unpickled. Links, devices and members larger than a sample can be are
damage, so a hostile file cannot fill the memory.

The checksum in the index is that of the whole file. It is computed of the bytes as they stream by,
and compared before the last sample is handed out.
"""

import hashlib
import tarfile
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import webdataset

from scm_lightning.data.index import Shard
from scm_lightning.data.location import is_remote, reason_of
from scm_lightning.data.members import Array as Array
from scm_lightning.data.members import array_bytes, array_of, picture_bytes, picture_of
from scm_lightning.data.stored_conditions import PICTURE, StoredCondition
from scm_lightning.given_files import open_regular
from scm_lightning.whole_files import written_whole

ARRAY, LABEL, CAPTION = "x.npy", "cls", "txt"
MAX_MEMBER_BYTES = 1 << 28
"""Largest sample: an array of 64 million float32."""
BLOCK_BYTES = 1 << 20


class Sample(NamedTuple):
    """One sample as stored.

    Attributes:
        array: the data.
        label: class.
        key: name in the shard.
        conditions: arrays by name; those of uint8 are pictures, (C, H, W).
        caption: text that describes it, or None.
    """

    array: Array
    label: int
    key: str
    conditions: Mapping[str, Array] = {}
    caption: str | None = None

    def members(self) -> dict[str, bytes]:
        """Contents of its members, by the ends of their names."""
        members = {ARRAY: array_bytes(self.array), LABEL: str(self.label).encode()}
        for name, array in self.conditions.items():
            if array.dtype == PICTURE:
                members[f"{name}.png"] = picture_bytes(array)
            else:
                members[f"{name}.npy"] = array_bytes(array)
        if self.caption is not None:
            members[CAPTION] = self.caption.encode()
        return members


class DamagedError(ValueError):
    """A file that is missing, breaks off or is not what the index lists; names it and says why."""


def write_shard(file: Path, samples: Iterable[Sample]) -> Shard:
    """Write samples into one file, which appears whole or not at all.

    Equal samples give equal bytes.

    Args:
        file: path of the file.
        samples: what it is to hold, in this order.

    Returns:
        Entry of the file for the index.
    """
    num_samples = 0
    with written_whole(file) as beside, beside.open("wb") as opened:
        hashed = _Hashed(opened)
        # A stream, since a path that begins like a command would be run. A whole number as the
        # time, because tar needs a header more for fractions of a second.
        with webdataset.TarWriter(hashed, mtime=0, user="scm", group="scm") as writer:
            for sample in samples:
                writer.write({"__key__": sample.key, **sample.members()})
                num_samples += 1
    return Shard(file.name, num_samples, hashed.num_bytes, hashed.sha256.hexdigest())


def read_shard(
    place: str,
    listed: Shard | None = None,
    conditions: Mapping[str, StoredCondition] = {},
    captions: bool = False,
) -> Iterator[Sample]:
    """Read the samples of one file in their order.

    Args:
        place: path or address; see `data/location.py`.
        listed: what the content is compared with, once the file is read to its end.
        conditions: those that are read of each sample, by name.
        captions: whether captions are read.

    Raises:
        ValueError: if a sample cannot be decoded, or the file breaks off; in place of the last
            sample, if the content is not what is listed. Names file and sample.
    """
    key, decoders = "", _decoders(conditions, captions)
    try:
        with _opened(place) as opened:
            stream = opened if listed is None else _Hashed(opened)
            members: dict[str, bytes] = {}
            for name, content in _members(stream):
                prefix, _, kind = name.partition(".")
                if members and (prefix != key or kind in members):
                    yield _decode(key, members, place, decoders)
                    members = {}
                key = prefix
                members[kind] = content if kind in decoders else b""
            if isinstance(stream, _Hashed) and listed is not None:
                stream.compare(listed, place)
            if members:
                yield _decode(key, members, place, decoders)
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


def _decoders(
    conditions: Mapping[str, StoredCondition], captions: bool
) -> dict[str, Callable[[bytes], Any]]:
    """Decoders of the members that are read; webdataset's own would unpickle some."""
    decoders: dict[str, Callable[[bytes], Any]] = {ARRAY: array_of, LABEL: int}
    for name, stored in conditions.items():
        picture = partial(picture_of, shape=stored.shape)
        decoders[stored.member(name)] = picture if stored.is_picture else array_of
    return {**decoders, CAPTION: bytes.decode} if captions else decoders


def _decode(
    key: str, members: dict[str, bytes], place: str, decoders: dict[str, Callable[[bytes], Any]]
) -> Sample:
    """Decode the members of one sample."""
    if missing := decoders.keys() - members.keys():
        raise damaged(place, f"it has no member {' and '.join(sorted(missing))}", key)
    values = {}
    for kind, decode in decoders.items():
        try:
            values[kind] = decode(members[kind])
        except (ValueError, EOFError, OSError, SyntaxError, tokenize.TokenError) as error:
            raise damaged(place, f"its {kind} cannot be decoded: {error}", key) from error
    array, label, caption = (values.pop(kind, None) for kind in (ARRAY, LABEL, CAPTION))
    conditions = {kind.partition(".")[0]: value for kind, value in values.items()}
    return Sample(array, label, key, conditions, caption)
