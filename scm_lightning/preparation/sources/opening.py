# SPDX-License-Identifier: Apache-2.0
"""Detection of what is at a path, to open it as a source of images."""

from pathlib import Path

from scm_lightning.data.index import INDEX_FILE
from scm_lightning.given_files import given_path, meant, meant_path
from scm_lightning.preparation.sources.cifar10 import BATCHES, FOLDER, open_cifar10
from scm_lightning.preparation.sources.fashion import FILE_PREFIXES, open_fashion
from scm_lightning.preparation.sources.files import Folder, Zip, open_files
from scm_lightning.preparation.sources.huggingface import HuggingFaceSource
from scm_lightning.preparation.sources.imagenet import open_imagenet
from scm_lightning.preparation.sources.source import ImageSource
from scm_lightning.preparation.sources.tars import WebDatasetSource

KINDS = ("folder", "imagenet", "zip", "webdataset", "cifar10", "fashion", "huggingface")
LABELLED_KINDS = ("folder", "imagenet", "zip")
SIGNS = {
    "huggingface": ("dataset_dict.json", "state.json"),
    "cifar10": (BATCHES[0], f"{FOLDER}/{BATCHES[0]}"),
    "fashion": (f"{FILE_PREFIXES['train']}-images-idx3-ubyte.gz",),
    "imagenet": ("ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train", "LOC_val_solution.csv"),
    "webdataset": ("*.tar",),
}
"""Files that tell what a folder is."""


def open_source(path: str, kind: str = "auto", labels: str | None = None) -> ImageSource:
    """Open a set of images.

    Args:
        path: folder, archive, or pattern of tar files (`*`, `{000..099}`).
        kind: `folder`, `imagenet`, `zip`, `webdataset`, `cifar10`, `fashion`, `huggingface`, or
            `auto` to find out; the source's `kind` and `description` say which it was.
        labels: CSV file of classes with the header `file,label`; for ImageNet,
            `LOC_val_solution.csv`.

    Returns:
        The source.

    Raises:
        ValueError: if nothing is there, or it is not of the kind, or labels and images do not fit.
    """
    if kind not in ("auto", *KINDS):
        near = meant(kind, KINDS) or "; choose one"
        raise ValueError(f"kind must be auto or one of {', '.join(KINDS)}, got {kind}{near}")
    place = Path(path := given_path(path))
    kind = detect_kind(path) if kind == "auto" else kind
    if labels is not None and kind not in LABELLED_KINDS:
        raise ValueError(
            f"labels from a CSV file go with images in a folder or zip archive, got the kind {kind}"
            f" for {path}; leave labels out"
        )
    table = Path(given_path(labels)) if labels is not None else None
    if kind == "webdataset":
        return WebDatasetSource(path)
    if not place.exists():
        advice = meant_path(path) or "; correct the path"
        raise ValueError(f"there is nothing at {path}{advice}")
    if kind in ("folder", "zip"):
        return open_files(kind, Zip(place) if kind == "zip" else Folder(place), table)
    if kind == "imagenet":
        return open_imagenet(place, table)
    if kind == "huggingface":
        return HuggingFaceSource(place)
    return open_cifar10(place) if kind == "cifar10" else open_fashion(place)


def detect_kind(path: str) -> str:
    """Find out the kind of a source by names of files alone.

    Args:
        path: as of `open_source`.

    Returns:
        One of `KINDS`.

    Raises:
        ValueError: if it is of none, or prepared already.
    """
    place, name = Path(path), Path(path).name.lower()
    if not place.exists() and any(sign in path for sign in "*?[{"):
        return "webdataset"
    if (place / INDEX_FILE).is_file():
        raise ValueError(
            f"{path} is prepared already: it holds {INDEX_FILE}; train on it as "
            "scm_lightning.data.Shards, or give the images that it was made of"
        )
    if place.is_dir() or not place.exists():
        found = (kind for kind, signs in SIGNS.items() if any(map(any, map(place.glob, signs))))
        return next(found, "folder")
    if name.endswith((".zip", ".tar")):
        return "zip" if name.endswith(".zip") else "webdataset"
    if name.endswith((".tar.gz", ".tgz")) and "cifar" in name:
        return "cifar10"
    raise ValueError(
        f"{path} must be a folder, .zip, .tar or CIFAR-10's cifar-10-python.tar.gz, got another "
        "file; unpack it and give the folder"
    )
