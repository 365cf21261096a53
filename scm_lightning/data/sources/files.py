# SPDX-License-Identifier: Apache-2.0
"""Image files in a folder or in a zip archive; the archive is read in place, never unpacked."""

import io
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, final

from scm_lightning.data.shards import Array
from scm_lightning.data.sources.decoding import MAX_FILE_BYTES, decode_image, is_image_name
from scm_lightning.data.sources.labels import (
    MAX_TABLE_BYTES,
    find_splits,
    folder_classes,
    match_labels,
    read_dataset_json,
    read_table,
)
from scm_lightning.data.sources.source import ImageSource, Item, UnreadableImageError
from scm_lightning.given_files import open_regular

DATASET_JSON = "dataset.json"
ZIP_ERRORS = (OSError, ValueError, IndexError, zipfile.BadZipFile, NotImplementedError)
"""What opening a damaged archive raises; IndexError for an empty name."""


class FileTree(ABC):
    """Files by their path within a folder or archive.

    Attributes:
        path: of the folder or archive.
        names: paths of the images within it, sorted.
    """

    path: Path
    names: list[str]

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            FileNotFoundError: if it is not there.
            OSError: if it is damaged, or larger than `MAX_FILE_BYTES`.
        """


@final
class Folder(FileTree):
    """A folder with all below it, but for names that start with a dot.

    Args:
        path: of the folder.
        below: folders at its top to look into; all, and the top itself, by default.

    Raises:
        ValueError: if a folder cannot be read.
    """

    def __init__(self, path: Path, below: Sequence[str] = ("",)) -> None:
        self.path = path
        starts = [start for start in below if (path / start).is_dir()]
        try:
            found = [name for start in starts for name in _walk(path / start, start, ())]
        except OSError as error:
            raise ValueError(f"{path} must be a folder that can be read: {error}") from error
        self.names = sorted(found)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return (self.path / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        """Open a file; see `FileTree.open`."""
        _check_size(self.size(name))
        try:
            return open_regular(self.path / name)
        except ValueError as error:
            raise OSError(str(error)) from error


@final
class Zip(FileTree):
    """A zip archive, opened by every process that reads from it.

    Raises:
        ValueError: if it is no zip archive, or holds a name twice or one that leads outside.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._opened_by = 0
        try:
            members = [info.filename for info in self._opened().infolist() if not info.is_dir()]
        except ZIP_ERRORS as error:
            raise ValueError(f"{path} must be a zip archive: {error}; get it again") from error
        check_member_names(members, path)
        self.names = sorted(n for n in members if is_image_name(n) and not _is_hidden(n))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}

    def size(self, name: str) -> int:
        """Bytes of a file, unpacked."""
        return self._opened().getinfo(name).file_size

    def open(self, name: str) -> BinaryIO:
        """Unpack a file into memory; see `FileTree.open`."""
        try:
            _check_size(self.size(name))
            return io.BytesIO(self._opened().read(name))
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
class FileSource(ImageSource):
    """Image files with classes and splits that somebody has found out.

    Args:
        kind: what `open_source` calls it.
        tree: the files.
        labels: class number of every image.
        splits: split of every image.
        class_names: names by class number.
    """

    def __init__(
        self,
        kind: str,
        tree: FileTree,
        labels: Sequence[int],
        splits: Sequence[str],
        class_names: list[str],
    ) -> None:
        self.kind = kind
        self.tree = tree
        self.description = f"{kind} {tree.path}"
        self.class_names = class_names
        self.items = [Item(*each) for each in zip(tree.names, labels, splits, strict=True)]

    def load(self, number: int) -> Array:
        """Decode one image; see `ImageSource.load`."""
        name = self.items[number].name
        try:
            file = self.tree.open(name)
        except OSError as error:
            raise UnreadableImageError(f"{name} cannot be read: {error}") from error
        with file:
            return decode_image(file, name)

    def _sizes(self) -> Iterable[int]:
        return map(self.tree.size, self.tree.names)


def open_files(kind: str, tree: FileTree, table: Path | None) -> FileSource:
    """Find out classes and splits of image files.

    Args:
        kind: what `open_source` calls it.
        tree: the files.
        table: CSV file of the labels, which goes before `dataset.json` and the folders.

    Returns:
        The source.

    Raises:
        ValueError: if there are no images, or labels and images do not fit.
    """
    if not tree.names:
        raise ValueError(
            f"{tree.path} must hold images (png, jpg, webp, bmp, gif, tif), got none; give another "
            "path"
        )
    splits, inner = find_splits(tree.names)
    if table is not None:
        found = match_labels(read_table(table), tree.names, str(table))
    else:
        found = _dataset_json_classes(tree) or folder_classes(splits, inner)
    return FileSource(kind, tree, found[0], splits, found[1])


def check_member_names(names: Sequence[str], archive: Path) -> None:
    """Refuse names of an archive's members that lead outside, or come twice.

    Raises:
        ValueError: naming the member.
    """
    for name in names:
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise ValueError(f"{archive} must hold no path that leads outside, got {name!r}")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{archive} must hold every file once, got {twice} twice")


def _dataset_json_classes(tree: FileTree) -> tuple[list[int], list[str]] | None:
    """Classes by EDM's `dataset.json`, if there is one."""
    where = f"{DATASET_JSON} of {tree.path}"
    try:
        with tree.open(DATASET_JSON) as file:
            content = file.read(MAX_TABLE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    if len(content) > MAX_TABLE_BYTES:
        raise ValueError(f"{where} must have at most {MAX_TABLE_BYTES:,} bytes, got more")
    pairs = read_dataset_json(content, where)
    return ([0] * len(tree.names), []) if pairs is None else match_labels(pairs, tree.names, where)


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        raise OSError(f"it has {num_bytes} bytes, more than {MAX_FILE_BYTES}")


def _is_hidden(name: str) -> bool:
    """Whether a part of a path is hidden, or a Macintosh's note on another file."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _walk(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    """Paths of the images below a folder, through links but not in circles."""
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
            elif is_image_name(entry.name) and entry.is_file():
                yield name
