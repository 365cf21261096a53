# SPDX-License-Identifier: Apache-2.0
"""Paths and files that a user gives: taken for what they say, and read within bounds.

A name that does not exist is answered with the nearest one that does.
"""

import os
import re
import stat
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO, NamedTuple

PLACE = re.compile(r"[a-z0-9]+:")
"""Start of an address, `https://...`, or a command, `pipe:...`: not a path of a file."""
VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def meant(name: str, known: Iterable[str], likeness: float = 0.75) -> str:
    """Name what was meant, to be said behind what came: `; did you mean NAME?`.

    Args:
        name: as it was typed.
        known: names that there are.
        likeness: share of the letters that must agree.

    Returns:
        The end of a message; empty if no name is near.
    """
    near = get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f"; did you mean {near[0]}?" if near else ""


def meant_path(path: str | os.PathLike[str]) -> str:
    """Name the path that was meant by one that does not exist; see `meant`."""
    missing = Path(path)
    while not missing.parent.is_dir() and missing != missing.parent:
        missing = missing.parent
    try:
        names = [each.name for each in missing.parent.iterdir()]
    except OSError:
        return ""
    near = get_close_matches(missing.name, names, n=1, cutoff=0.75)
    if not near or missing.exists():
        return ""
    whole = missing.with_name(near[0]) / Path(path).relative_to(missing)
    return f"; did you mean {whole}?" if whole.exists() else ""


def given_path(path: str | os.PathLike[str]) -> str:
    """Spell out a path that a user typed: `~` is the home.

    Args:
        path: as it was typed; an address or a command is left as it is.

    Raises:
        ValueError: if it holds the name of a variable, `$NAME`, which a shell would have replaced,
            or the home of an unknown user.
    """
    text = os.fspath(path)
    if PLACE.match(text):
        return text
    if found := VARIABLE.search(text):
        raise ValueError(
            f"a path must not hold the variable {found[0]}, which only a shell replaces, got "
            f"{text}; write out what it stands for"
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(
            f"{text} must begin with a user's home, and there is no such user; give ./{text} for "
            "a file of that name"
        )
    return expanded


def open_regular(file: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to read; a pipe or device could go on for ever, or never begin.

    Args:
        file: the file, or a link to it.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is something else than a regular file.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((name for is_kind, name in KINDS if is_kind(mode)), "something else")
        raise ValueError(f"{os.fspath(file)} must be a regular file, got {kind}; give a file")
    return os.fdopen(descriptor, "rb")


def read_regular(file: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Read a regular file whole.

    Args:
        file: the file, or a link to it.
        max_bytes: the most that a file of its kind can have.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not a regular file, or has more bytes.
    """
    with open_regular(file) as opened:
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(
            f"{os.fspath(file)} must have at most {max_bytes:,} bytes, got more; give another file"
        )
    return content


class Kind(NamedTuple):
    """Content of a file, told from its beginning.

    Attributes:
        name: what it is, to be said.
        advice: what to do if it is not what was wanted.
    """

    name: str
    advice: str


PICKLE = Kind("a pickle", "give the file of weights that it is about")
SAFETENSORS = Kind("a safetensors file", "give a file of the kind that is read here")
ARCHIVE = Kind("a file of torch.save", "give a file of the kind that is read here")
AGAIN = "download the file itself; its size is that which its page gives"
BEGINNINGS = (
    (rb".{5}\0\0\0\{", SAFETENSORS),
    (rb"\s*$", Kind("an empty file", AGAIN)),
    (
        rb"version https://git-lfs\.github\.com/",
        Kind("a Git LFS pointer, which only names the file", "run `git lfs pull` in its folder"),
    ),
    (rb"(?i)\s*<(!doctype html|html)", Kind("an HTML page", AGAIN)),
    (rb"\s*<[?a-zA-Z]", Kind("an XML page", AGAIN)),
    (rb"PK\x03\x04|\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", ARCHIVE),
    (rb"\x80[\x02-\x05]", PICKLE),
)
"""Beginnings of files, as patterns; the first that fits tells."""


def what_it_is(opened: BinaryIO) -> Kind:
    """Tell from a file's first bytes what it is: a download often ends with something else.

    Args:
        opened: the file; it is left at its beginning.
    """
    opened.seek(0)
    head = opened.read(512)
    opened.seek(0)
    for pattern, kind in BEGINNINGS:
        if re.match(pattern, head, re.DOTALL):
            return kind
    return Kind(f"a file that begins with {head[:8]!r}", AGAIN)


def refuse_others(file: str | os.PathLike[str], opened: BinaryIO, wanted: Kind) -> None:
    """Refuse a file of another kind, a Git LFS pointer or an HTML page in its place.

    Args:
        file: its name.
        opened: the file; it is left at its beginning.
        wanted: `PICKLE`, `SAFETENSORS` or `ARCHIVE`.

    Raises:
        ValueError: if it is something else.
    """
    found = what_it_is(opened)
    if found != wanted:
        raise ValueError(
            f"{os.fspath(file)} must be {wanted.name}, got {found.name}; {found.advice}"
        )
