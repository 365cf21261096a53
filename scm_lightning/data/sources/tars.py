# SPDX-License-Identifier: Apache-2.0
r"""Webdataset: images in tar files, beside their classes.

    KEY.png (jpg, jpeg, webp, bmp, gif, tif)    the image
    KEY.cls                                     its class, a number or a name
    KEY.json                                    or {"label": its class, ...}

A key is a member's path up to the first dot of its file name. What has no image is no sample. The
headers are read once, and then each image from its place: nothing is unpacked onto the disk and
nothing is unpickled. Links, devices and paths that lead outside are refused, and so are tar files
that are compressed as a whole, in which no place can be looked up.

Where the path of every tar file holds one of the words train, val, valid, validation and test, and
both sides occur, the words are the split.
"""

import glob
import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast, final

import braceexpand
from rich.progress import track

from scm_lightning.data.shards import Array
from scm_lightning.data.sources.decoding import MAX_FILE_BYTES, SUFFIXES, decode_image
from scm_lightning.data.sources.files import check_member_names
from scm_lightning.data.sources.labels import HELDOUT_NAMES, number_labels
from scm_lightning.data.sources.source import ImageSource, Item, UnreadableImageError

MAX_TARS = 100_000
MAX_LABEL_BYTES = MAX_HEADER_BYTES = 1 << 20
KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)


class Place(NamedTuple):
    """Where the bytes of a member are: number of the tar file, offset and length."""

    tar: int
    offset: int
    num_bytes: int


@final
class WebDatasetSource(ImageSource):
    """Images in tar files.

    Args:
        path: a tar file, a folder of them, or a pattern with `*` or `{000..099}`.

    Raises:
        ValueError: if there are none, one is damaged or dangerous, or only some images have a
            class.
    """

    kind = "webdataset"

    def __init__(self, path: str) -> None:
        self.description = f"webdataset {path}"
        self.tars = find_tars(path)
        self._places: list[Place] = []
        keys: list[str] = []
        labels: list[str | None] = []
        splits: list[str] = []
        names = _short_names(self.tars)
        bar = track(self.tars, "reading tar headers", disable=len(self.tars) < 2)
        # Closed at once: rich waits for itself if its thread collects a bar left half-way.
        with closing(bar) as files:  # type: ignore[type-var]
            for number, (file, split) in enumerate(zip(files, _splits(names), strict=True)):
                for key, place, label in _read_tar(file, number):
                    keys.append(f"{names[number]}/{key}")
                    self._places.append(place)
                    labels.append(label)
                    splits.append(split)
        if not keys:
            raise ValueError(f"the tar files of {path} must hold images, got none")
        numbers, self.class_names = _number(labels, keys)
        self.items = [Item(*each) for each in zip(keys, numbers, splits, strict=True)]

    def load(self, number: int) -> Array:
        """Decode one image; see `ImageSource.load`."""
        name, place = self.items[number].name, self._places[number]
        if place.num_bytes > MAX_FILE_BYTES:
            raise UnreadableImageError(f"{name} cannot be read: it is larger than {MAX_FILE_BYTES}")
        try:
            with self.tars[place.tar].open("rb") as file:
                content = _read_at(file, place)
        except OSError as error:
            raise UnreadableImageError(f"{name} cannot be read: {error}") from error
        return decode_image(io.BytesIO(content), name)

    def _sizes(self) -> Iterable[int]:
        return (place.num_bytes for place in self._places)


def find_tars(path: str) -> list[Path]:
    """Tar files of a folder, a pattern, or a path.

    Raises:
        ValueError: if there are none, or one is missing.
    """
    if os.path.isdir(path):
        files = sorted(Path(path).glob("*.tar")) or sorted(Path(path).glob("*/*.tar"))
    elif os.path.exists(path):
        files = [Path(path)]
    elif "{" in path:
        files = _expand_braces(path)
    else:
        files = [Path(each) for each in sorted(glob.glob(path))]
    if not 1 <= len(files) <= MAX_TARS:
        raise ValueError(
            f"{path} must be 1 to {MAX_TARS} tar files on this machine, got "
            f"{'more' if files else 'none'}; give a folder, or a pattern with * or {{000..099}}"
        )
    if len(set(files)) < len(files):
        raise ValueError(f"{path} must name every tar file once, got one twice; correct it")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} tar files are missing, first {missing[0]}; give only those that are "
            "on this machine"
        )
    return files


def _expand_braces(path: str) -> list[Path]:
    """Paths of a pattern like `{000..099}`; more than are allowed if there are too many."""
    # braceexpand writes a whole range down before it gives out the first.
    for first, last in re.findall(r"\{(\d+)\.\.(\d+)", path):
        if abs(int(last) - int(first)) >= MAX_TARS:
            raise ValueError(f"{path} must be 1 to {MAX_TARS} tar files, got more; give fewer")
    try:
        expanded = itertools.islice(braceexpand.braceexpand(path), MAX_TARS + 1)
        return [Path(each) for each in expanded]
    except ValueError as error:
        raise ValueError(f"the braces of {path} must be closed: {error}") from error


def _read_tar(file: Path, number: int) -> Iterator[tuple[str, Place, str | None]]:
    """Key, place of the image and class of every sample of a tar file."""
    images: dict[str, Place] = {}
    texts: dict[str, dict[str, Place]] = {"cls": {}, "json": {}}
    with file.open("rb") as opened:
        for name, place in _members(opened, file, number):
            match = KEY.fullmatch(name)
            if match is None:
                continue
            key, suffix = match[1], match[2].lower()
            found = images if f".{suffix}" in SUFFIXES else texts.get(suffix)
            if found is not None and found.setdefault(key, place) != place:
                raise ValueError(f"{file} must hold one image of the key {key}, got two")
        for key, place in images.items():
            label = None
            if key in texts["cls"]:
                label = _read_label(opened, texts["cls"][key], f"{key}.cls of {file}")
            elif key in texts["json"]:
                content = _read_label(opened, texts["json"][key], f"{key}.json of {file}")
                label = _json_label(content, f"{key}.json of {file}")
            yield key, place, label


def _members(opened: BinaryIO, file: Path, number: int) -> Iterator[tuple[str, Place]]:
    """Names and places of the regular files of a tar file."""
    num_bytes = os.fstat(opened.fileno()).st_size
    try:
        # "r:" takes no compression.
        with tarfile.open(fileobj=cast(BinaryIO, _Headers(opened)), mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                # Sparse files pass for regular ones, and may claim to be of any size.
                if not member.isreg() or member.issparse():
                    raise ValueError(
                        f"{file} must hold regular files only, got {member.name!r}, a link, device "
                        "or sparse file; pack the images again"
                    )
                place = Place(number, member.offset_data, member.size)
                if member.size < 0 or place.offset + place.num_bytes > num_bytes:
                    raise tarfile.ReadError(f"{member.name!r} ends outside of it")
                check_member_names([member.name], file)
                yield member.name.removeprefix("./"), place
                archive.members = []  # type: ignore[attr-defined]  # else all stay in memory
            opened.seek(archive.offset)
            if opened.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it breaks off before its end")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{file} must be a whole tar file without compression: {error}; get it again, or "
            "unpack .gz first"
        ) from error


class _Headers:
    """A tar file as tarfile reads it, which takes in a long name at any length that it claims."""

    def __init__(self, opened: BinaryIO) -> None:
        self.seek, self.tell, self._opened = opened.seek, opened.tell, opened

    def read(self, size: int) -> bytes:
        """Read a header.

        Raises:
            tarfile.ReadError: if it is larger than any.
        """
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._opened.read(size)


def _read_at(file: BinaryIO, place: Place) -> bytes:
    file.seek(place.offset)
    content = file.read(place.num_bytes)
    if len(content) < place.num_bytes:
        raise OSError("the tar file has become shorter")
    return content


def _read_label(file: BinaryIO, place: Place, where: str) -> str:
    if place.num_bytes > MAX_LABEL_BYTES:
        raise ValueError(f"{where} must be a class of a few letters, got {place.num_bytes} bytes")
    try:
        return _read_at(file, place).decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} must be text in UTF-8: {error}") from error


def _json_label(content: str, where: str) -> str | None:
    try:
        label = json.loads(content).get("label")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f'{where} must hold {{"label": ...}}: {error}; correct it') from error
    if label is None:
        return None
    if type(label) not in (int, str) or (type(label) is int and label < 0):
        raise ValueError(f"the label in {where} must be a number from 0 or a name, got {label!r}")
    return str(label)


def _number(labels: list[str | None], keys: list[str]) -> tuple[list[int], list[str]]:
    """Number the classes, which all images have or none."""
    given = [label for label in labels if label is not None]
    if not given:
        return [0] * len(labels), []
    if len(given) < len(labels):
        raise ValueError(
            f"every image must have a class or none, got {len(labels) - len(given)} without of "
            f"{len(labels)}, first {keys[labels.index(None)]}; add KEY.cls"
        )
    return number_labels(given, "the tar files")


def _short_names(tars: list[Path]) -> list[str]:
    """Paths of the tar files from the folder that they share."""
    folder = os.path.commonpath([file.parent for file in tars])
    return [file.relative_to(folder).as_posix() for file in tars]


def _splits(names: list[str]) -> list[str]:
    """Split of every tar file by the words of its path; empty if these do not say it of all."""
    words = [set(re.split(r"[^a-z]+", name.lower())) for name in names]
    splits = {
        (True, False): "train",
        (False, True): "heldout",
    }
    found = [splits.get(("train" in w, bool(w.intersection(HELDOUT_NAMES))), "") for w in words]
    return found if set(found) == {"train", "heldout"} else [""] * len(names)
