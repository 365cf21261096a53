# SPDX-License-Identifier: Apache-2.0
"""A folder that `save_to_disk` of Hugging Face's library `datasets` has written.

The image is the one column of that type. The class is the one column of type ClassLabel, or else
the column `label` with whole numbers or names. Of a DatasetDict, `train` is the training split and
`validation`, `valid`, `val` and `test` are held out; a held-out part whose classes are all -1,
which means that they are secret, is left out.

The library maps Arrow files into memory. It is asked for the bytes of the images, and decoding is
done here; an image of which only a path is stored is refused.
"""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

from scm_lightning.data.shards import Array
from scm_lightning.data.sources.decoding import MAX_FILE_BYTES, decode_image
from scm_lightning.data.sources.labels import HELDOUT_NAMES, MAX_TABLE_BYTES, number_labels
from scm_lightning.data.sources.source import ImageSource, Item, UnreadableImageError

LABEL = "label"


@final
class HuggingFaceSource(ImageSource):
    """Images in Arrow files.

    Args:
        path: folder that `save_to_disk` has written.

    Raises:
        ValueError: if the library is missing, cannot read the folder, or columns or splits are
            not clear.
    """

    kind = "huggingface"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description = f"huggingface {path}"
        self._stored: dict[str, Any] | None = None
        parts = _load(path)
        features = next(iter(parts.values())).features
        if any(part.features != features for part in parts.values()):
            raise ValueError(f"the splits of {path} must have the same columns; save them so")
        self._image = _find_image(features, path)
        label = _find_label(features, path)
        names: list[str] = []
        labels: list[Any] = []
        splits: list[str] = []
        self._rows: list[tuple[str, int]] = []
        for part_name, part in parts.items():
            split = "heldout" if part_name in HELDOUT_NAMES else "train"
            of_part = [None] * len(part) if label is None else list(part[label][:])
            if split == "heldout" and label is not None and set(of_part) <= {-1}:
                continue
            self._rows += [(part_name, row) for row in range(len(part))]
            names += [f"{part_name or 'all'}/{row:08d}" for row in range(len(part))]
            labels += of_part
            splits += [split] * len(part)
        if not labels:
            raise ValueError(f"{path} must hold images, got none; give another folder")
        if "heldout" not in splits:
            splits = [""] * len(splits)
        numbers, self.class_names = _number(labels, features, label, path)
        self.items = [Item(*each) for each in zip(names, numbers, splits, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stored": None}

    def load(self, number: int) -> Array:
        """Decode one image; see `ImageSource.load`."""
        if self._stored is None:  # first here, or in another process
            self._stored = _stored_images(self.path, self._image)
        name, (part, row) = self.items[number].name, self._rows[number]
        stored = self._stored[part][row][self._image]
        content = stored and stored["bytes"]
        if not content:
            raise UnreadableImageError(f"{name} cannot be read: its bytes are not stored")
        if len(content) > MAX_FILE_BYTES:
            raise UnreadableImageError(f"{name} cannot be read: it is larger than {MAX_FILE_BYTES}")
        return decode_image(io.BytesIO(content), name)

    def _sizes(self) -> Iterable[int]:
        files = {part: sorted((self.path / part).glob("*.arrow")) for part, _ in self._rows}
        num_bytes = {part: sum(f.stat().st_size for f in each) for part, each in files.items()}
        return (num_bytes[part] for part, _ in self._rows)


def _load(path: Path) -> dict[str, Any]:
    """Parts of the data set by name; one of empty name if it has no parts."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs Hugging Face's library; run pip install datasets"
        ) from error
    _refuse_devices(path)
    try:
        loaded = datasets.load_from_disk(str(path))
    # The library raises errors of pyarrow and its own, of many kinds.
    except Exception as error:
        raise ValueError(
            f"{path} must be a folder that save_to_disk has written, got another: {error}"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return {"": loaded.with_format(None)}
    others = sorted(set(loaded) - {"train", *HELDOUT_NAMES})
    if others or "train" not in loaded:
        raise ValueError(
            f"the splits of {path} must be train and {', '.join(HELDOUT_NAMES)}, got "
            f"{', '.join(loaded)}; rename them, or give the folder of one"
        )
    return {name: part.with_format(None) for name, part in loaded.items()}


def _refuse_devices(path: Path) -> None:
    """The library would wait for a pipe for ever, and read all of a device."""
    for file in path.rglob("*"):
        if not file.is_dir() and not file.is_file():
            raise ValueError(
                f"{path} must hold regular files, got {file.name}, a pipe, device or dead link; "
                "save it again"
            )
        if file.suffix == ".json" and file.is_file() and file.stat().st_size > MAX_TABLE_BYTES:
            raise ValueError(f"{file} must have at most {MAX_TABLE_BYTES:,} bytes, got more")


def _stored_images(path: Path, column: str) -> dict[str, Any]:
    """The columns of images as they are stored, not decoded by the library."""
    parts = _load(path)
    import datasets

    stored = datasets.Image(decode=False)
    return {
        name: part.select_columns([column]).cast_column(column, stored)
        for name, part in parts.items()
    }


def _find_image(features: Any, path: Path) -> str:
    import datasets

    found = [name for name, each in features.items() if isinstance(each, datasets.Image)]
    if len(found) != 1:
        raise ValueError(
            f"{path} must have one column of images, got {found or 'none'} among "
            f"{sorted(features)}; remove or cast columns, and save it again"
        )
    return str(found[0])


def _find_label(features: Any, path: Path) -> str | None:
    import datasets

    found = [name for name, each in features.items() if isinstance(each, datasets.ClassLabel)]
    if len(found) > 1 and LABEL not in found:
        raise ValueError(
            f"{path} must have one column of classes or one named {LABEL}, got {found}; rename the "
            "one to use, and save it again"
        )
    if LABEL in found or not found:
        return LABEL if LABEL in features else None
    return str(found[0])


def _number(
    labels: list[Any], features: Any, label: str | None, path: Path
) -> tuple[list[int], list[str]]:
    """Class number of every image, and names by number."""
    if label is None:
        return [0] * len(labels), []
    names = getattr(features[label], "names", None)
    wrong = [each for each in labels if type(each) not in (int, str) or each == -1]
    if wrong:
        raise ValueError(
            f"the column {label} of {path} must hold a class for every image, got {len(wrong)} "
            f"others, first {wrong[0]!r}; remove these rows, and save it again"
        )
    if names is not None:
        return labels, list(names)
    return number_labels([str(each) for each in labels], f"the column {label} of {path}")
