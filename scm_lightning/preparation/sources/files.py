# SPDX-License-Identifier: Apache-2.0
"""Image files in a folder or in a zip archive; the archive is read in place, never unpacked."""

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from scm_lightning.given_files import open_regular, read_regular
from scm_lightning.preparation.sources.decoding import MAX_FILE_BYTES, is_image_name
from scm_lightning.preparation.sources.labels import (
    find_splits,
    folder_classes,
    match_labels,
    read_dataset_json,
    read_table,
)
from scm_lightning.preparation.sources.source import EncodedSource, Item, check_size

DATASET_JSON = "dataset.json"
ZIP_ERRORS = (OSError, ValueError, IndexError, zipfile.BadZipFile, NotImplementedError)
"""Errors that opening a damaged archive raises; IndexError for an empty name."""


@final
class Folder:
    """A folder with all below it, but for names that start with a dot.

    Args:
        path: of the folder.
        below: folders at its top to look into; all, and the top itself, by default.

    Attributes:
        sizes: bytes of every image by its path within the folder, sorted.

    Raises:
        ValueError: if a folder cannot be read.
    """

    def __init__(self, path: Path, below: Sequence[str] = ("",)) -> None:
        self.path = path
        starts = [start for start in below if (path / start).is_dir()]
        try:
            found = [each for start in starts for each in _walk(path / start, start, ())]
        except OSError as error:
            raise ValueError(f"{path} must be a folder that can be read: {error}") from error
        self.sizes: Mapping[str, int] = dict(sorted(found))

    def read(self, name: str) -> bytes:
        """Content of a file; see `EncodedSource.read`."""
        return read_regular(self.path / name, MAX_FILE_BYTES)


@final
class Zip:
    """A zip archive, opened by every process that reads from it; as `Folder`.

    Raises:
        ValueError: if it is not a zip archive, or holds a name twice or one that leads outside.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._opened_by = 0
        try:
            members = [each for each in self._opened().infolist() if not each.is_dir()]
        except ZIP_ERRORS as error:
            raise ValueError(f"{path} must be a zip archive: {error}; get it again") from error
        check_member_names([each.filename for each in members], path)
        found = ((each.filename, each.file_size) for each in members)
        self.sizes = dict(sorted(f for f in found if is_image_name(f[0]) and not _is_hidden(f[0])))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}

    def read(self, name: str) -> bytes:
        """Unpack a file into memory; see `EncodedSource.read`."""
        try:
            check_size(self._opened().getinfo(name).file_size)
            return self._opened().read(name)
        except KeyError as error:
            raise FileNotFoundError(name) from error
        # A member that is damaged, encrypted, or packed in an unknown way.
        except Exception as error:
            raise OSError(str(error)) from error

    def _opened(self) -> zipfile.ZipFile:
        # A process that was forked shares the position in the file with the one that opened it.
        if self._archive is None or self._opened_by != os.getpid():
            self._archive, self._opened_by = zipfile.ZipFile(open_regular(self.path)), os.getpid()
        return self._archive


@final
class FileSource(EncodedSource):
    """Image files whose classes and splits are known.

    Args:
        kind: what `open_source` calls it.
        files: the files.
        splits: split of every image.
        classes: class number of every image, and names by number.
    """

    def __init__(
        self,
        kind: str,
        files: Folder | Zip,
        splits: Sequence[str],
        classes: tuple[Sequence[int], Sequence[str]],
    ) -> None:
        each = zip(files.sizes, classes[0], splits, files.sizes.values(), strict=True)
        super().__init__(kind, files.path, classes[1], [Item(*fields) for fields in each])
        self.files = files

    def read(self, number: int) -> bytes:
        """Content of an image's file; see `EncodedSource.read`."""
        return self.files.read(self.items[number].name)


def open_files(kind: str, files: Folder | Zip, table: Path | None) -> FileSource:
    """Find out classes and splits of image files.

    Args:
        kind: what `open_source` calls it.
        files: the files.
        table: CSV file of the labels, which goes before `dataset.json` and the folders.

    Returns:
        The source.

    Raises:
        ValueError: if there are no images, or labels and images do not fit.
    """
    names = [*files.sizes]
    if not names:
        raise ValueError(
            f"{files.path} must hold images (png, jpg, webp, bmp, gif, tif), got none; give "
            "another path"
        )
    splits, inner = find_splits(names)
    if table is not None:
        return FileSource(kind, files, splits, match_labels(read_table(table), names, str(table)))
    where = f"{DATASET_JSON} of {files.path}"
    try:
        pairs = read_dataset_json(files.read(DATASET_JSON), where)
    except FileNotFoundError:
        return FileSource(kind, files, splits, folder_classes(splits, inner))
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    classes = ([0] * len(names), []) if pairs is None else match_labels(pairs, names, where)
    return FileSource(kind, files, splits, classes)


def check_member_names(names: Sequence[str], archive: Path) -> None:
    """Refuse names of an archive's members that lead outside, or come twice.

    Raises:
        ValueError: naming the member.
    """
    seen: set[str] = set()
    for name in names:
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise ValueError(f"{archive} must hold no path that leads outside, got {name!r}")
        if name in seen:
            raise ValueError(f"{archive} must hold every file once, got {name} twice")
        seen.add(name)


def _is_hidden(name: str) -> bool:
    """Tell whether a part of a path is hidden, or a Macintosh's note on another file."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _walk(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Paths and sizes of the images below a folder, through links but not in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(folder / entry.name, name, (*above, real))
            elif is_image_name(entry.name):  # a pipe or a link to nothing is named when it is read
                yield name, entry.stat().st_size if entry.is_file() else 0
