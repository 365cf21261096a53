# SPDX-License-Identifier: Apache-2.0
"""Get the Noto emoji as images with classes: pictures to try `scm prepare` on.

    python data/emoji/get.py                 by npm, 74 MB
    python data/emoji/get.py PACKAGE.tgz     from a package that is here already

Writes `images/*.png` (64x64, color with alpha), `labels.csv` (file, label) and `captions.csv`
(file, caption) beside this script. The classes are the nine categories of Unicode's emoji; the
captions are their names in small letters. Variations of skin tone are in the category of what they
vary, and have the tone in their captions. The five patches of bare skin tone, which have no
category, are left out.

Images: Noto Emoji 2.048, Copyright Google, Apache License 2.0. Package: emoji-datasource-google
16.0.0 by Cal Henderson, MIT licence.
"""

import csv
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

PACKAGE = "emoji-datasource-google@16.0.0"
SHA512 = (
    "6517b17f3b3b315a0b9e6cd998db0ee132a19c0269e43fbe566e8fa54a47fe31"
    "104257a6a7797cf028d9f83a19d9f68cf51e10c5990e3c90a84fc0e53e17d0dc"
)
IMAGES = "package/img/google/64/"
NO_CATEGORY = "Component"
TONES = {
    "1F3FB": "light",
    "1F3FC": "medium light",
    "1F3FD": "medium",
    "1F3FE": "medium dark",
    "1F3FF": "dark",
}
"""Skin tones by their code points."""


def pack(folder: str) -> Path:
    """Have npm put the package into a folder."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm is not installed; give the path of the package's .tgz file instead")
    print(f"getting {PACKAGE} by npm (74 MB)")
    subprocess.run([npm, "pack", PACKAGE, "--silent"], cwd=folder, check=True)
    return next(Path(folder).glob("*.tgz"))


def described(emoji: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """File, category and caption of every picture."""
    for base in emoji:
        for tones, each in [("", base), *base.get("skin_variations", {}).items()]:
            if each["has_img_google"] and base["category"] != NO_CATEGORY:
                skin = " and ".join(TONES[tone] for tone in tones.split("-") if tone)
                name = base["name"].lower()
                yield each["image"], base["category"], f"{name}, {skin} skin" if skin else name


def write(package: Path, folder: Path) -> tuple[int, int]:
    """Write images, labels and captions; returns the numbers of images and of classes."""
    if hashlib.sha512(package.read_bytes()).hexdigest() != SHA512:
        sys.exit(f"{package} is not {PACKAGE}: its SHA-512 differs; get it again")
    shutil.rmtree(folder / "images", ignore_errors=True)
    (folder / "images").mkdir()
    with tarfile.open(package) as archive:
        members = {member.name: member for member in archive.getmembers() if member.isreg()}
        emoji = json.loads(archive.extractfile(members["package/emoji.json"]).read())
        rows = sorted(described(emoji))
        for name, *_ in track(rows, "writing images"):
            content = archive.extractfile(members[IMAGES + name]).read()
            (folder / "images" / name).write_bytes(content)
    tables = {
        "labels.csv": [("file", "label"), *((name, category) for name, category, _ in rows)],
        "captions.csv": [("file", "caption"), *((name, caption) for name, _, caption in rows)],
    }
    for table, lines in tables.items():
        with (folder / table).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)
    return len(rows), len({category for _, category, _ in rows})


def main() -> None:
    """Get, write, report."""
    folder = Path(__file__).parent
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(sys.argv[1]) if len(sys.argv) > 1 else pack(scratch)
        num_images, num_classes = write(package, folder)
    print(f"{num_images} images of {num_classes} classes in {folder / 'images'}")


if __name__ == "__main__":
    main()
