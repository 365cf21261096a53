# SPDX-License-Identifier: Apache-2.0
"""A folder that `save_to_disk` of Hugging Face's library `datasets` has written.

The image is the one column of that type. The class is the one column of type ClassLabel, or else
the column `label` with whole numbers or names. Of a DatasetDict, `train` is the training split and
`validation`, `valid`, `val` and `test` are held out; a held-out part whose classes are all -1,
which means that they are secret, is left out.

The library maps Arrow files into memory. It is asked for the bytes of the images, and decoding is
done here; an image of which only a path is stored is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from scm_lightning.given_files import meant
from scm_lightning.preparation.sources.labels import (
    HELDOUT_NAMES,
    MAX_TABLE_BYTES,
    Classes,
    number_labels,
)
from scm_lightning.preparation.sources.source import EncodedSource, Item, check_size

LABEL = "label"


@final
class HuggingFaceSource(EncodedSource):
    """Images in Arrow files.

    Args:
        path: folder that `save_to_disk` has written.

    Raises:
        ValueError: if the library is missing, cannot read the folder, or columns or splits are
            not clear.
    """

    def __init__(self, path: Path) -> None:
        parts = _load(path)
        features = next(iter(parts.values())).features
        if any(part.features != features for part in parts.values()):
            raise ValueError(f"the splits of {path} must have the same columns; save them that way")
        self._column, label = _columns(features, path)
        self._path, self._parts = path, list[tuple[int, Any]]()
        self._whole = list[Any]()
        items, labels = list[Item](), list[Any]()
        for name, part in parts.items():
            split = "heldout" if name in HELDOUT_NAMES else "train"
            of_part = [None] * len(part) if label is None else list(part[label][:])
            if split == "heldout" and set(of_part) <= {-1}:
                continue
            stored, rows = _undecoded(part, self._column), range(len(part))
            self._whole.append(part)
            self._parts += [(row, stored) for row in rows]
            size = sum(file.stat().st_size for file in (path / name).glob("*.arrow"))
            items += [Item(f"{name or 'all'}/{row:08d}", 0, split, size) for row in rows]
            labels += of_part
        if not items:
            raise ValueError(f"{path} must hold images, got none; give another folder")
        numbers, names = _number(labels, features, label, path)
        if all(item.split == "train" for item in items):
            items = [item._replace(split="") for item in items]
        numbered = zip(items, numbers, strict=True)
        super().__init__(
            "huggingface", path, names, [item._replace(label=number) for item, number in numbered]
        )

    def read(self, number: int) -> bytes:
        """Content of an image's file; see `EncodedSource.read`."""
        row, part = self._parts[number]
        stored = part[row][self._column]
        content: bytes | None = stored and stored["bytes"]
        if not content:
            raise OSError("its bytes are not stored")
        check_size(len(content))
        return content

    def texts(self, column: str) -> list[str]:
        """Text of every image in a column, without blanks around it.

        Raises:
            ValueError: if there is no such column, or it does not hold texts.
        """
        columns = sorted(self._whole[0].features)
        if column not in columns:
            raise ValueError(
                f"captions must name a column of {self._path}, one of {', '.join(columns)}, got "
                f"{column}{meant(column, columns)}"
            )
        texts = [text for part in self._whole for text in part[column][:]]
        wrong = [each for each in texts if not isinstance(each, str)]
        if wrong:
            raise ValueError(
                f"the column {column} of {self._path} must hold a text for every image, got "
                f"{len(wrong)} others, first {wrong[0]!r:.40}; choose another"
            )
        return [text.strip() for text in texts]


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
    if set(loaded) - {"train", *HELDOUT_NAMES} or "train" not in loaded:
        raise ValueError(
            f"the splits of {path} must be train and {', '.join(HELDOUT_NAMES)}, got "
            f"{', '.join(loaded)}; rename them, or give the folder of one"
        )
    return {name: part.with_format(None) for name, part in loaded.items()}


def _refuse_devices(path: Path) -> None:
    """Refuse pipes and devices: the library would wait for ever, or read for ever."""
    for file in path.rglob("*"):
        if not file.is_dir() and not file.is_file():
            raise ValueError(
                f"{path} must hold regular files, got {file.name}, a pipe, device or dead link; "
                "save it again"
            )
        if file.suffix == ".json" and file.is_file() and file.stat().st_size > MAX_TABLE_BYTES:
            raise ValueError(f"{file} must have at most {MAX_TABLE_BYTES:,} bytes, got more")


def _undecoded(part: Any, column: str) -> Any:
    """The images of a part as they are stored, not decoded by the library."""
    import datasets

    return part.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _columns(features: Mapping[str, Any], path: Path) -> tuple[str, str | None]:
    """Names of the columns of images and of classes."""
    import datasets

    images = [name for name, each in features.items() if isinstance(each, datasets.Image)]
    if len(images) != 1:
        raise ValueError(
            f"{path} must have one column of images, got {images or 'none'} among "
            f"{sorted(features)}; remove or cast columns, and save it again"
        )
    classes = [name for name, each in features.items() if isinstance(each, datasets.ClassLabel)]
    if len(classes) == 1:
        return images[0], classes[0]
    if classes and LABEL not in classes:
        raise ValueError(
            f"{path} must have one column of classes or one named {LABEL}, got {classes}; rename "
            "the one to use, and save it again"
        )
    return images[0], LABEL if LABEL in features else None


def _number(
    labels: list[Any], features: Mapping[str, Any], label: str | None, path: Path
) -> Classes:
    if label is None:
        return [0] * len(labels), []
    wrong = [each for each in labels if type(each) not in (int, str) or each == -1]
    if wrong:
        raise ValueError(
            f"the column {label} of {path} must hold a class for every image, got {len(wrong)} "
            f"others, first {wrong[0]!r}; remove these rows, and save it again"
        )
    if (names := getattr(features[label], "names", None)) is not None:
        return labels, list(names)
    return number_labels([str(each) for each in labels], f"the column {label} of {path}")
