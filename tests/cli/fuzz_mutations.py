# SPDX-License-Identifier: Apache-2.0
"""Seeded damage to the bytes of files, blind and with the format's own checksums put right again.

    bytes     flipped bits, cuts, blocks inserted, doubled, zeroed, filled or swapped, lengths made
              huge in either byte order, runs of digits made others
    JSON      a value replaced by another kind of value, a key taken away, added, or nested deeply
    text      lines and words likewise
    archives  the same to one member or header, whose checksum then fits

What a decoder checks first stops most blind damage; the second kind gets behind it.
"""

import copy
import gzip
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

Mutate = Callable[[bytes, Random], bytes]

HUGE = (0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1, 0)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 10**400, 1e308, float("nan"), float("inf"), 0.5),
    *("", "x", "../canary", "/canary", "\x1b[31m\x07", "\ud800", "9" * 5000, "a" * 3000, "\n\n"),
    *([], {}, [[]], [1, "x"], {"x": 1}, [0] * 100, {"class_path": "os.system"}),
)
ODD_WORDS = (
    *("null", "-1", "1e999", ".nan", ".inf", "~", "x", "9" * 30, "9" * 5000, "'", '"', "[", "{"),
    *("&a [*a]", "*b", "!!python/name:os.system", "!!python/object/apply:os.getpid []", "\t", ": "),
    *("!!binary x", "!!float x", "!!int x", "!!timestamp x", "!!set {a}", "? ", "- ", "<<: 1", "="),
)


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """One to four pieces of damage, most often one."""
    found = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        random.choice((_flip, _cut, _block, _swap, _length, _digits))(found, random)
    return bytes(found)


def _place(found: bytearray, random: Random) -> int:
    """Anywhere, or as often near either end, where formats keep what they are."""
    size = max(len(found), 1)
    near = min(size, 256)
    return random.choice((random.randrange(size), random.randrange(near), size - near))


def _span(found: bytearray, random: Random) -> slice:
    start = _place(found, random)
    return slice(start, start + random.choice((1, 4, 16, 100, 512, 4096)))


def _flip(found: bytearray, random: Random) -> None:
    for _ in range(random.choice((1, 1, 2, 8)) if found else 0):
        found[_place(found, random)] ^= 1 << random.randrange(8)


def _cut(found: bytearray, random: Random) -> None:
    if random.random() < 0.5:
        del found[_place(found, random) :]
    else:
        del found[_span(found, random)]


def _block(found: bytearray, random: Random) -> None:
    """Zero, fill, replace, insert or double."""
    span = _span(found, random)
    size = len(found[span])
    other = found[_span(found, random)]
    new = random.choice((bytes(size), b"\xff" * size, random.randbytes(size), other))
    found[span if random.random() < 0.6 else slice(span.start, span.start)] = new


def _swap(found: bytearray, random: Random) -> None:
    size = random.choice((1, 8, 64, 512))
    a, b = sorted((_place(found, random), _place(found, random)))
    if a + size <= b:
        found[a : a + size], found[b : b + size] = found[b : b + size], found[a : a + size]


def _length(found: bytearray, random: Random) -> None:
    """What may be a length, huge."""
    size = random.choice((1, 2, 4, 8))
    start = _place(found, random)
    value = random.choice(HUGE) % (1 << 8 * size)
    found[start : start + size] = value.to_bytes(size, random.choice(("little", "big")))


def _digits(found: bytearray, random: Random) -> None:
    """Numbers that are written out, as in headers of tar and numpy."""
    runs = list(re.finditer(rb"[0-9]+", found))
    if runs:
        run = random.choice(runs)
        size = len(run[0])
        new = (b"7" * size, b"9" * size, b"0" * size, b"-" + run[0][1:], b"9" * (size + 8))
        found[run.start() : run.end()] = random.choice(new)


def mutate_text(content: bytes, random: Random) -> bytes:
    """Of lines and words; now and then of bytes."""
    if random.random() < 0.2:
        return mutate_bytes(content, random)
    lines = content.decode().split("\n")
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(lines))
        kind = random.randrange(6)
        if kind == 0:
            del lines[at : at + random.choice((1, 3))]
        elif kind == 1:
            lines.insert(at, lines[random.randrange(len(lines))])
        elif kind == 2:
            lines[at] = random.choice(("  ", " ", "\t", "- ")) + lines[at]
        else:
            words = re.split(r"(\s+|[,:])", lines[at])
            words[random.randrange(len(words))] = random.choice(ODD_WORDS)
            lines[at] = "".join(words)
        lines = lines or [""]
    if random.random() < 0.03:
        deep = random.choice((50, 3000, 100_000))
        lines.append("deep: " + random.choice(("[", "{a: ")) * deep)
    return "\n".join(lines).encode()


def mutate_json(content: bytes, random: Random) -> bytes:
    """Of values; now and then of text."""
    if random.random() < 0.3:
        return mutate_text(content, random)
    found = json.loads(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        found = _other_value(found, random)
    if random.random() < 0.03:
        deep = random.choice((500, 100_000))
        return b"[" * deep + json.dumps(found).encode() + b"]" * deep
    return json.dumps(found).encode()


def _other_value(found: Any, random: Random) -> Any:
    """The value with one below it changed."""
    if not isinstance(found, dict | list) or not found or random.random() < 0.15:
        return copy.deepcopy(random.choice(ODD_VALUES))
    keys = list(found) if isinstance(found, dict) else list(range(len(found)))
    key = random.choice(keys)
    kind = random.random()
    if kind < 0.1:
        del found[key]
    elif kind < 0.2:
        new = copy.deepcopy(random.choice(ODD_VALUES))
        found.update({"new": new}) if isinstance(found, dict) else found.append(new)
    else:
        found[key] = _other_value(found[key], random)
    return found


def mutate_safetensors(content: bytes, random: Random) -> bytes:
    """The header, as JSON, with a length that fits."""
    (size,) = struct.unpack("<Q", content[:8])
    header = mutate_json(content[8 : 8 + size], random)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def mutate_zip(content: bytes, random: Random) -> bytes:
    """One member, and the archive written anew, perhaps packed; other files blindly."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return mutate_bytes(content, random)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in members if name.endswith(".pkl")]
    name = random.choice(pickles if pickles and random.random() < 0.7 else list(members))
    members[name] = mutate_bytes(members[name], random)
    buffer = io.BytesIO()
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return buffer.getvalue()


def mutate_tar(content: bytes, random: Random) -> bytes:
    """Headers whose checksums fit: types, sizes, names."""
    found = bytearray(content)
    headers = [at for at in range(0, len(found), 512) if found[at + 257 : at + 262] == b"ustar"]
    for at in random.sample(headers, min(len(headers), random.choice((1, 1, 3)))):
        kind = random.randrange(4)
        if kind == 0:
            found[at + 156] = random.choice(b"01234567SKLxgDVM\x00\xff")
        elif kind == 1:
            size = (b"%011o\0" % random.choice((0, 1, 2**20, 8**11 - 1)), b"\x80" + b"\x7f" * 11)
            found[at + 124 : at + 136] = random.choice((*size, b"\xff" * 12, b"-0000000001\0"))
        elif kind == 2:
            name = random.choice(
                (b"../canary.png", b"/tmp/canary.cls", b"\x1b[31m.png", b"\xff.x.npy")
            )
            found[at : at + 100] = name.ljust(100, b"\0")
        else:
            part = bytearray(
                mutate_bytes(bytes(found[at : at + 345]), random)[:345].ljust(345, b"\0")
            )
            found[at : at + 345] = part
        header = found[at : at + 148] + b" " * 8 + found[at + 156 : at + 512]
        found[at + 148 : at + 156] = b"%06o\0 " % (sum(header) % 8**6)
    return bytes(found)


def mutate_png(content: bytes, random: Random) -> bytes:
    """Chunks whose checksums fit; the size of the image, its kind, its pixels."""
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    number = 0 if random.random() < 0.5 else random.randrange(len(chunks))
    chunks[number] = (chunks[number][0], mutate_bytes(chunks[number][1], random))
    if random.random() < 0.1:
        chunks.insert(random.randrange(1, len(chunks)), random.choice(chunks))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return content[:8] + b"".join(parts)


def mutate_gzip(content: bytes, random: Random) -> bytes:
    """What is packed."""
    return gzip.compress(mutate_bytes(gzip.decompress(content), random), 1, mtime=0)


def either(*kinds: Mutate) -> Mutate:
    """One of several kinds of damage, or blind damage, as often each."""

    def mutate(content: bytes, random: Random) -> bytes:
        return random.choice((mutate_bytes, *kinds))(content, random)

    return mutate
