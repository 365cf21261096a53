# SPDX-License-Identifier: Apache-2.0
"""Kinds of files that `scm prepare` is given, and how their images are read."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from fuzz_engine import Kind
from fuzz_mutations import (
    either,
    mutate_bytes,
    mutate_gzip,
    mutate_json,
    mutate_png,
    mutate_tar,
    mutate_text,
)
from PIL import Image

from scm_lightning.preparation.sources import open_source
from scm_lightning.preparation.sources.cifar10 import read_batch
from scm_lightning.preparation.sources.fashion import read_idx


def image(kind: str, number: int = 0) -> bytes:
    """A small picture."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.quantize(16) if kind == "GIF" else picture).save(buffer, kind)
    return buffer.getvalue()


def read_source(place: Path, table: Path | None = None) -> list:
    """All images, of which those that cannot be read are refused one by one."""
    source = open_source(str(place), labels=None if table is None else str(table))
    source.fingerprint()
    return [source.load(number).shape for number in range(len(source.items))]


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def kinds() -> list[Kind]:
    """All of them."""
    files = {f"a/x.{kind.lower()}": image(kind) for kind in ("JPEG", "WEBP", "BMP", "GIF", "TIFF")}
    png = {"a/x.png": image("PNG")}
    pair = {"a/0.png": image("PNG"), "b/1.png": image("PNG", 1)}
    labels = json.dumps({"labels": [["a/0.png", 0], ["b/1.png", 1]]}).encode()
    tarred = {
        "0.png": image("PNG"),
        "0.cls": b"0",
        "1.png": image("PNG", 1),
        "1.cls": b"1",
    }
    idx = gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">3I", 2, 5, 5) + bytes(50), mtime=0)

    cifar = {"data": np.zeros((7, 3072), np.uint8), "labels": [1, 2, 3, 4, 5, 6, 7]}

    def parent(file: Path) -> list:
        return read_source(file.parents[1])

    return [
        Kind("picture", files, parent, mutate_bytes, 1500),
        Kind("png", png, parent, either(mutate_png), 1200),
        Kind("zip", {"x.zip": _zip(pair)}, read_source, mutate_bytes, 600),
        Kind("tar", {"x.tar": _tar(tarred)}, read_source, either(mutate_tar), 800),
        Kind(
            "dataset.json",
            {"dataset.json": labels},
            lambda file: read_source(file.parent),
            mutate_json,
            300,
            pair,
        ),
        Kind(
            "labels",
            {"x.csv": b"file,label\na/0.png,0\nb/1.png,1\n"},
            lambda file: read_source(file.parent, file),
            mutate_text,
            300,
            pair,
        ),
        Kind("idx", {"x.gz": idx}, lambda file: read_idx(file, 3).shape, either(mutate_gzip), 300),
        Kind(
            "cifar10",
            {"data_batch_1": pickle.dumps(cifar, 2)},
            lambda file: read_batch(file.read_bytes(), "it")[1],
            mutate_bytes,
            300,
        ),
    ]
