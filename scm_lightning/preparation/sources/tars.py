# SPDX-License-Identifier: Apache-2.0
r"""Webdataset: images in tar files, beside their classes.

    KEY.png (jpg, jpeg, webp, bmp, gif, tif)    the image
    KEY.cls                                     its class, a number or a name
    KEY.txt                                     its caption, read where captions are asked for

A key is a member's path up to the first dot of its file name. A key without an image is not a
sample. The headers are read once, and then each image from its place: nothing is unpacked onto the
disk and nothing is unpickled. Links, devices and paths that lead outside are refused, and so are
tar files that are compressed as a whole, in which no place can be looked up.

Where the path of every tar file holds one of the words train, val, valid, validation and test, and
both sides occur, the words are the split.
"""

import glob
import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast, final

import braceexpand

from scm_lightning.given_files import open_regular
from scm_lightning.preparation.sources.decoding import SUFFIXES
from scm_lightning.preparation.sources.files import check_member_names
from scm_lightning.preparation.sources.labels import HELDOUT_NAMES, Classes, number_labels
from scm_lightning.preparation.sources.source import EncodedSource, Item, check_size
from scm_lightning.saying import counted

CAPTION = "txt"
MAX_LABEL_BYTES = MAX_HEADER_BYTES = 1 << 20
KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)


class Place(NamedTuple):
    """Position of the bytes of a member: offset and length."""

    offset: int
    num_bytes: int


@final
class WebDatasetSource(EncodedSource):
    """Images in tar files.

    Args:
        path: a tar file, a folder of them, or a pattern with `*` or `{000..099}`.

    Raises:
        ValueError: if there are none, one is damaged or dangerous, or only some images have a
            class.
    """

    def __init__(self, path: str) -> None:
        tars = find_tars(path)
        folder = os.path.commonpath([file.parent for file in tars])
        names = [file.relative_to(folder).as_posix() for file in tars]
        check_member_names(names, Path(path))
        found = []
        with counted("reading tar headers", len(tars)) as advance:
            for file, name, split in zip(tars, names, _splits(names), strict=True):
                found += [
                    ((file, place, text), f"{name}/{key}", label, split)
                    for key, place, text, label in _read_tar(file)
                ]
                advance(1)
        if not found:
            raise ValueError(f"the tar files of {path} must hold images, got none")
        self._places = [at for at, _, _, _ in found]
        numbers, class_names = _number([(key, label) for _, key, label, _ in found])
        items = [
            Item(key, number, split, place.num_bytes)
            for ((_, place, _), key, _, split), number in zip(found, numbers, strict=True)
        ]
        super().__init__("webdataset", path, class_names, items)

    def read(self, number: int) -> bytes:
        """Content of an image's file; see `EncodedSource.read`."""
        file, place, _ = self._places[number]
        with open_regular(file) as opened:
            return _read_at(opened, place)

    def texts(self) -> list[str]:
        """Caption of every image, without blanks around it.

        Raises:
            ValueError: if an image has none, or one cannot be read.
        """
        without = [n for n, (_, _, text) in enumerate(self._places) if text is None]
        if without:
            raise ValueError(
                f"every image must have a caption KEY.{CAPTION}, got {len(without)} without of "
                f"{len(self.items)}, first {self.items[without[0]].name}; pack them again"
            )
        captions = list[str]()
        for file, group in itertools.groupby(self._places, key=lambda at: at[0]):
            with open_regular(file) as opened:
                captions += [
                    _read_text(opened, text, f"a caption of {file}") for _, _, text in group if text
                ]
        return captions


def find_tars(path: str) -> list[Path]:
    """Tar files of a folder, a pattern, or a path.

    Raises:
        ValueError: if there are none, or one is missing.
    """
    place = Path(path)
    if place.is_dir():
        files = sorted(place.glob("*.tar")) or sorted(place.glob("*/*.tar"))
    else:
        try:
            patterns = [path] if place.exists() else [*braceexpand.braceexpand(path)]
        except ValueError as error:
            raise ValueError(f"the braces of {path} must be closed: {error}") from error
        files = [Path(file) for each in patterns for file in sorted(glob.glob(each)) or [each]]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise ValueError(
            f"{path} must be tar files on this machine, {len(missing)} of {len(files)} are missing"
            f"{f', first {missing[0]}' if missing else ''}; give a folder, a file, or a pattern "
            "with * or {000..099}"
        )
    return files


def _read_tar(file: Path) -> Iterator[tuple[str, Place, Place | None, str | None]]:
    """Key, places of image and caption, and class of every sample of a tar file."""
    images, classes, texts = dict[str, Place](), dict[str, Place](), dict[str, Place]()
    kept = {".cls": classes, f".{CAPTION}": texts, **dict.fromkeys(SUFFIXES, images)}
    with open_regular(file) as opened:
        for name, place in _members(opened, file):
            if match := KEY.fullmatch(name):
                key, suffix = match[1], f".{match[2].lower()}"
                found = kept.get(suffix)
                if found is not None and found.setdefault(key, place) != place:
                    raise ValueError(f"{file} must hold one image of the key {key}, got two")
        for key, place in images.items():
            at = classes.get(key)
            label = at and _read_text(opened, at, f"{key}.cls of {file}")
            yield key, place, texts.get(key), label


def _members(opened: BinaryIO, file: Path) -> Iterator[tuple[str, Place]]:
    """Names and places of the regular files of a tar file."""
    num_bytes = os.fstat(opened.fileno()).st_size
    try:
        # "r:" takes no compression.
        with tarfile.open(fileobj=cast(BinaryIO, _Headers(opened)), mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else all stay in memory
                if member.isdir():
                    continue
                # Sparse files pass for regular ones, and may claim to be of any size.
                if not member.isreg() or member.issparse():
                    raise ValueError(
                        f"{file} must hold regular files only, got {member.name!r}, a link, device "
                        "or sparse file; pack the images again"
                    )
                if member.size < 0 or member.offset_data + member.size > num_bytes:
                    raise tarfile.ReadError(f"{member.name!r} ends outside of it")
                check_member_names([member.name], file)
                yield member.name.removeprefix("./"), Place(member.offset_data, member.size)
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
    check_size(place.num_bytes)
    file.seek(place.offset)
    content = file.read(place.num_bytes)
    if len(content) < place.num_bytes:
        raise OSError("the tar file has become shorter")
    return content


def _read_text(file: BinaryIO, place: Place, where: str) -> str:
    """A class or a caption."""
    if place.num_bytes > MAX_LABEL_BYTES:
        raise ValueError(f"{where} must have a few letters, got {place.num_bytes} bytes")
    try:
        return _read_at(file, place).decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} must be text in UTF-8: {error}") from error


def _number(labels: list[tuple[str, str | None]]) -> Classes:
    """Number the classes by key, which all images have or none."""
    given = [label for _, label in labels if label is not None]
    if not given:
        return [0] * len(labels), []
    without = [key for key, label in labels if label is None]
    if without:
        raise ValueError(
            f"every image must have a class or none, got {len(without)} without of {len(labels)}, "
            f"first {without[0]}; add KEY.cls"
        )
    return number_labels(given, "the tar files")


def _splits(names: list[str]) -> list[str]:
    """Split of every tar file by the words of its path; empty if these do not say it of all."""
    words = [set(re.split(r"[^a-z]+", name.lower())) for name in names]
    train = ["train" in each for each in words]
    heldout = [not each.isdisjoint(HELDOUT_NAMES) for each in words]
    if train == [not each for each in heldout] and any(train) and any(heldout):
        return ["train" if each else "heldout" for each in train]
    return [""] * len(names)
