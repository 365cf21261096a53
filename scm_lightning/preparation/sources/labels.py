# SPDX-License-Identifier: Apache-2.0
"""Classes and splits of image files: by their folders, a table, or EDM's `dataset.json`.

    train/CLASS/..., val|test/CLASS/...    split and classes
    CLASS/...                              classes, if no image lies outside of such a folder
    file,label                             a table in CSV; the label is a number or a name
    {"labels": [[FILE, NUMBER], ...]}      dataset.json; null for no labels

Names are numbered in the order of the alphabet. A single class is no classes.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from scm_lightning.data.index_checks import MAX_CLASSES
from scm_lightning.given_files import read_regular

NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+", re.ASCII)
"""A label that was meant as a number: as a name, it would stand elsewhere in the alphabet."""
MAX_TABLE_BYTES = 1 << 27
"""Largest table: twice the size of ImageNet's."""
HELDOUT_NAMES = ("val", "valid", "validation", "test")
TABLE_HEADER = ["file", "label"]


Classes = tuple[list[int], list[str]]
"""Class number of every image, and names by number; without classes, zeros and no names."""


def number_labels(labels: Sequence[str], where: str) -> Classes:
    """Number labels, which are numbers from the start or else names.

    Args:
        labels: label of every image.
        where: what holds them, for errors.

    Raises:
        ValueError: if a number is too large or none from 0, or a label is empty.
    """
    if "" in labels:
        raise ValueError(f"{where} has an empty label; give every image one")
    if all(label.isascii() and label.isdigit() for label in labels):
        # Lengths first: converting a number of a million digits takes minutes.
        largest = max(labels, key=lambda label: (len(label.lstrip("0")), label.lstrip("0")))
        if len(largest.lstrip("0")) > 9 or int(largest) >= MAX_CLASSES:
            raise ValueError(
                f"class numbers must be below {MAX_CLASSES}, got {largest[:20]} in {where}; number "
                "the classes from 0, or give names"
            )
        return [int(label) for label in labels], [str(n) for n in range(int(largest) + 1)]
    if all(NUMBER.fullmatch(label) for label in labels):
        wrong = next(label for label in labels if not label.isdigit())
        raise ValueError(
            f"class numbers must be whole numbers from 0, got {wrong[:20]} in {where}; number the "
            "classes from 0, or give names"
        )
    return _numbered(labels, set(labels))


def find_splits(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take the folders `train` and `val` or `test` at the top as the split.

    Args:
        names: paths of the images within the source.

    Returns:
        Split of every image, and its path within the split.

    Raises:
        ValueError: if other folders at the top hold images too.
    """
    tops = {name.split("/")[0] if "/" in name else "" for name in names}
    heldout = tops.intersection(HELDOUT_NAMES)
    others = sorted(tops - heldout - {"train"})
    if "train" not in tops or (others and not heldout):
        return [""] * len(names), list(names)
    if others:
        raise ValueError(
            f"beside the folders train and {sorted(heldout)[0]} there must be no other images, got "
            f"some in {others[0] or 'the folder itself'}; move them, or give one of the folders"
        )
    splits = {"train": "train" if heldout else "", **dict.fromkeys(heldout, "heldout")}
    parts = [name.split("/", 1) for name in names]
    return [splits[top] for top, _ in parts], [rest for _, rest in parts]


def folder_classes(splits: Sequence[str], inner: Sequence[str]) -> Classes:
    """Take the first folder within the split as the class.

    Args:
        splits: split of every image.
        inner: path of every image within its split.

    Raises:
        ValueError: if held-out images are of no class that training images are of.
    """
    folders = [name.split("/")[0] if "/" in name else "" for name in inner]
    trained = {f for f, split in zip(folders, splits, strict=True) if split != "heldout"}
    if "" in trained or len(trained) < 2:
        return [0] * len(inner), []
    strange = [name for name, f in zip(inner, folders, strict=True) if f not in trained]
    if strange:
        raise ValueError(
            f"held-out images must lie in folders of classes as training images do, got "
            f"{len(strange)} others, first {strange[0]}; sort them, or give the labels as a CSV "
            "file"
        )
    return _numbered(folders, trained)


def read_table(file: Path, header: Sequence[str] = TABLE_HEADER) -> list[tuple[str, str]]:
    """Read a table of two columns.

    Raises:
        ValueError: if it cannot be read, or has another header or other columns.
    """
    try:
        content = io.BytesIO(read_regular(file, MAX_TABLE_BYTES))
        rows = list(csv.reader(io.TextIOWrapper(content, encoding="utf-8-sig", newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{file} must be a CSV file in UTF-8: {error}") from error
    if not rows or rows[0] != list(header):
        raise ValueError(
            f"{file} must start with the line {','.join(header)}, got "
            f"{','.join(rows[0]) if rows else 'nothing'}"
        )
    for number, row in enumerate(rows[1:], 2):
        if row and len(row) != 2:
            raise ValueError(f"line {number} of {file} must have 2 fields, got {len(row)}")
    return [(row[0], row[1].strip()) for row in rows[1:] if row]


def read_dataset_json(content: bytes, where: str) -> list[tuple[str, str]] | None:
    """Read EDM's labels; None if the file says that there are none.

    Raises:
        ValueError: if the content is something else.
    """
    try:
        pairs = json.loads(content)["labels"]
        if pairs is None:
            return None
        if not all(type(f) is str and type(n) is int and n >= 0 for f, n in pairs):
            raise TypeError("a row is not a file with a number from 0")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f'{where} must hold {{"labels": [[FILE, NUMBER], ...]}}, got other content ({error}); '
            "correct or remove it"
        ) from error
    return [(name, str(number)) for name, number in pairs]


def match_labels(pairs: Iterable[tuple[str, str]], names: Sequence[str], where: str) -> Classes:
    """Give every image the class of a table; as `match_rows`."""
    return number_labels(match_rows(pairs, names, where), where)


def match_rows(
    pairs: Iterable[tuple[str, str]], names: Sequence[str], where: str, noun: str = "label"
) -> list[str]:
    """Give every image the label, or the caption, of a table.

    Args:
        pairs: image and label, in any order.
        names: the images.
        where: what holds the pairs, for errors.
        noun: word for what belongs to an image, likewise.

    Returns:
        Labels in the order of the images.

    Raises:
        ValueError: if an image has no label or two, or a label no image.
    """
    rows = [(str(PurePosixPath(name)), label) for name, label in pairs]
    labels, counts, known = dict(rows), Counter(name for name, _ in rows), set(names)
    problems = {
        "lists images twice": [name for name, count in counts.items() if count > 1],
        "lists images that are not there": [name for name in labels if name not in known],
        f"has no {noun} for images": [name for name in names if name not in labels],
    }
    for problem, wrong in problems.items():
        if wrong:
            raise ValueError(
                f"{where} {problem}: {len(wrong)}, first {wrong[0]}; paths are relative to the "
                "folder of the images, and every image has one line"
            )
    return [labels[name] for name in names]


def _numbered(labels: Sequence[str], names: set[str]) -> Classes:
    numbers = {name: number for number, name in enumerate(sorted(names))}
    return [numbers[label] for label in labels], [*numbers]
