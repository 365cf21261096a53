# SPDX-License-Identifier: Apache-2.0
"""Folders, zip archives and ImageNet: which images, which classes, which split."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from scm_lightning.preparation.sources import UnreadableImageError, open_source


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder, names):
    """Images whose red value is their number."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
    return folder


def as_zip(folder):
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as written:
        for file in sorted(folder.rglob("*")):
            written.write(file, file.relative_to(folder))
    return archive


def table(file, rows, header="file,label"):
    file.write_text("\n".join([header, *rows]) + "\n")
    return str(file)


def listed(source):
    """Name, class and split of every item."""
    names = [source.class_names[item.label] if source.class_names else "" for item in source.items]
    return [(item.name, name, item.split) for item, name in zip(source.items, names, strict=True)]


@pytest.mark.parametrize("pack", [lambda folder: folder, as_zip])
def test_images_in_folders_of_classes(tmp_path, pack):
    names = ["dog/b.png", "cat/z/y.png", "cat/x.png", "dog/.hidden.png", "dog/notes.txt"]
    source = open_source(str(pack(fill(tmp_path / "pets", names))))
    assert source.class_names == ["cat", "dog"]
    assert source.max_value == 255.0
    assert listed(source) == [
        ("cat/x.png", "cat", ""),
        ("cat/z/y.png", "cat", ""),
        ("dog/b.png", "dog", ""),
    ]
    travelled = pickle.loads(pickle.dumps(source))
    assert [int(travelled.load(n)[0, 0, 0]) for n in range(3)] == [2, 1, 0]
    assert travelled.load(0).shape == (2, 3, 3)
    assert source.description.startswith(f"{source.kind} {tmp_path}")


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["a.png", "x/b.png"], ["x/a.png"]])
def test_images_without_classes(tmp_path, names):
    """Directly in the folder, some of them, or in a single one below."""
    source = open_source(str(fill(tmp_path, names)))
    assert listed(source) == [(name, "", "") for name in names]


@pytest.mark.parametrize("heldout", ["val", "test", "validation"])
def test_folders_of_splits(tmp_path, heldout):
    names = [f"{heldout}/dog/1.png", "train/cat/1.png", "train/dog/1.png", "train/cat/0.png"]
    source = open_source(str(fill(tmp_path, names)))
    assert set(listed(source)) == {
        (f"{heldout}/dog/1.png", "dog", "heldout"),
        ("train/cat/0.png", "cat", "train"),
        ("train/cat/1.png", "cat", "train"),
        ("train/dog/1.png", "dog", "train"),
    }


def test_a_lone_training_folder_is_no_split(tmp_path):
    source = open_source(str(fill(tmp_path, ["train/a/1.png", "train/b/1.png"])))
    assert listed(source) == [("train/a/1.png", "a", ""), ("train/b/1.png", "b", "")]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["train/a/1.png", "val/a/1.png", "more/1.png"], "some in more"),
        (["train/a/1.png", "val/a/1.png", "1.png"], "some in the folder itself"),
        (["train/a/1.png", "train/b/1.png", "val/1.png"], "1 others, first 1.png"),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], "1 others, first c/1.png"),
        (["notes.txt"], "got none"),
    ],
)
def test_unclear_folders_are_refused(tmp_path, names, problem):
    with pytest.raises(ValueError, match=problem):
        open_source(str(fill(tmp_path, names)))


@pytest.mark.parametrize("pack", [lambda folder: folder, as_zip])
def test_a_table_of_labels_goes_before_folders(tmp_path, pack):
    path = str(pack(fill(tmp_path / "x", ["a/1.png", "b/2.png", "b/3.png"])))
    rows = ["b/2.png,sun", "./a/1.png,moon", "", "b/3.png,moon"]
    source = open_source(path, labels=table(tmp_path / "names.csv", rows))
    assert [name for _, name, _ in listed(source)] == ["moon", "sun", "moon"]
    rows = ["b/2.png,3", "a/1.png,0", "b/3.png,10"]
    source = open_source(path, labels=table(tmp_path / "numbers.csv", rows))
    assert [item.label for item in source.items] == [0, 3, 10]
    assert source.class_names == [str(number) for number in range(11)]


@pytest.mark.parametrize(
    ("rows", "header", "problem"),
    [
        (["a.png,1"], "file,label", "no label for images: 1, first b.png"),
        (["a.png,1", "b.png,1", "c.png,1"], "file,label", "are not there: 1, first c.png"),
        (["a.png,1", "b.png,1", "a.png,2"], "file,label", "twice: 1, first a.png"),
        (["a.png,1", "b.png,"], "file,label", "empty label"),
        (["a.png,1", "b.png,1,2"], "file,label", "line 3"),
        (["a.png,0", "b.png,-1"], "file,label", "whole numbers from 0, got -1"),
        (["a.png,1", "b.png,2.0"], "file,label", r"whole numbers from 0, got 2\.0"),
        (["a.png,1", "b.png,1"], "name,class", "file,label, got name,class"),
        (["a.png,1", "b.png," + "9" * 1_000_000], "file,label", "field larger"),
        (["a.png,1", "b.png," + "9" * 10_000], "file,label", "below 100000"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, rows, header, problem):
    folder = fill(tmp_path / "images", ["a.png", "b.png"])
    labels = table(tmp_path / "labels.csv", rows, header)
    with pytest.raises(ValueError, match=problem):
        open_source(str(folder), labels=labels)


@pytest.mark.parametrize("pack", [lambda folder: folder, as_zip])
def test_labels_of_edm(tmp_path, pack):
    folder = fill(tmp_path / "edm", ["00000/1.png", "00001/2.png"])
    labels = [["00001/2.png", 2], ["00000/1.png", 0]]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    source = open_source(str(pack(folder)))
    assert listed(source) == [("00000/1.png", "0", ""), ("00001/2.png", "2", "")]
    assert len(source.class_names) == 3
    (folder / "dataset.json").write_text('{"labels": null}')
    assert open_source(str(pack(folder))).class_names == []


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "{",
        '{"labels": [["1.png", -1]]}',
        '{"labels": [["1.png", 0.5]]}',
        "{}",
        "[1]",
    ],
)
def test_damaged_labels_of_edm_are_refused(tmp_path, content):
    (fill(tmp_path, ["1.png"]) / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=r"dataset.json of .* must hold"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("top", ["", "ILSVRC/Data/CLS-LOC"])
def test_imagenet(tmp_path, top):
    names = ["train/n02/n02_1.JPEG", "train/n01/n01_1.JPEG", "val/V_1.JPEG", "test/T_1.JPEG"]
    fill(tmp_path / top, names)
    kind = "auto" if top else "imagenet"
    with pytest.raises(ValueError, match=r"LOC_val_solution.csv there, or"):
        open_source(str(tmp_path), kind)
    solution = tmp_path / "LOC_val_solution.csv"
    table(solution, ["V_1,n02 3 4 5 6 n02 1 2 3 4"], "ImageId,PredictionString")
    source = open_source(str(tmp_path), kind)
    assert listed(source) == [
        ("train/n01/n01_1.JPEG", "n01", "train"),
        ("train/n02/n02_1.JPEG", "n02", "train"),
        ("val/V_1.JPEG", "n02", "heldout"),
    ]
    assert source.load(2)[0, 0, 0] == 2
    table(solution, ["V_2,n02 3 4 5 6"], "ImageId,PredictionString")
    with pytest.raises(ValueError, match=r"got 1 others, first V_1.JPEG"):
        open_source(str(tmp_path), kind)


def test_the_fingerprint_follows_names_sizes_and_classes(tmp_path):
    def fingerprint():
        return open_source(str(tmp_path)).fingerprint()

    fill(tmp_path, ["a/1.png", "b/2.png"])
    found = [fingerprint()]
    assert fingerprint() == found[0]
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "3.png")
    found.append(fingerprint())
    (tmp_path / "a" / "3.png").write_bytes(png(0) + b"more")
    found.append(fingerprint())
    (tmp_path / "b").rename(tmp_path / "c")
    found.append(fingerprint())
    assert len(set(found)) == 4


def test_a_link_to_nothing_and_a_pipe_are_named_not_passed_over(tmp_path):
    folder = fill(tmp_path / "images", ["a.png"])
    (folder / "b.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "c.png")
    source = open_source(str(folder))
    assert [item.name for item in source.items] == ["a.png", "b.png", "c.png"]
    for number, reason in ((1, "No such file"), (2, "got a pipe")):
        with pytest.raises(UnreadableImageError, match=reason):
            source.load(number)


def test_links_are_followed_but_not_in_circles(tmp_path):
    fill(tmp_path / "elsewhere", ["1.png"])
    folder = fill(tmp_path / "images", ["b/2.png"])
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "again").symlink_to(folder)
    assert [item.name for item in open_source(str(folder)).items] == ["a/1.png", "b/2.png"]


def test_an_image_that_is_damaged_or_gone_is_named(tmp_path):
    source = open_source(str(fill(tmp_path, ["a.png", "b.png"])))
    (tmp_path / "a.png").write_bytes(b"nonsense")
    os.remove(tmp_path / "b.png")
    for number, name in enumerate(["a.png", "b.png"]):
        with pytest.raises(UnreadableImageError, match=f"{name} cannot be read"):
            source.load(number)


def test_a_forked_process_opens_a_zip_archive_for_itself(tmp_path, monkeypatch):
    """Else both would move one position in the file, and read each other's images."""
    source = open_source(str(as_zip(fill(tmp_path / "x", ["a.png", "b.png"]))))
    inherited = source.files._opened()
    assert source.files._opened() is inherited
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert source.files._opened() is not inherited
    assert source.load(1)[0, 0, 0] == 1


def test_zip_archives_with_traps_are_refused(tmp_path):
    for name in ("../a.png", "/a.png", "x/../../a.png", "..\\a.png"):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr(name, png(0))
        with pytest.raises(ValueError, match="leads outside"):
            open_source(str(tmp_path / "x.zip"))
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(ValueError, match="must be a zip archive"):
        open_source(str(tmp_path / "x.zip"))


def test_damage_within_a_zip_archive_is_found(tmp_path, monkeypatch):
    """By the checksum, and bombs by the size that they would have."""
    archive = as_zip(fill(tmp_path / "x", ["a.png"]))
    content = bytearray(archive.read_bytes())
    content[60] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"a.png cannot be read: Bad CRC"):
        open_source(str(archive)).load(0)
    monkeypatch.setattr("scm_lightning.preparation.sources.source.MAX_FILE_BYTES", 5000)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("a.png", bytes(5001))
    with pytest.raises(UnreadableImageError, match="has 5001 bytes, more than 5000"):
        open_source(str(archive)).load(0)


def test_what_cannot_be_opened_is_said(tmp_path):
    fill(tmp_path, ["a.png"])
    (tmp_path / "x.rar").write_bytes(b"x")
    for path, kind, labels, problem in (
        (tmp_path / "missing", "auto", None, "there is nothing at .*missing"),
        (tmp_path / "missing", "folder", None, "there is nothing at .*missing"),
        (tmp_path, "pictures", None, "one of folder, imagenet, zip"),
        (tmp_path, "imagenet", None, "folder train"),
        (tmp_path, "fashion", "labels.csv", "leave labels out"),
        (tmp_path, "auto", str(tmp_path / "no.csv"), "must be a CSV file"),
        (tmp_path / "x.rar", "auto", None, "got another file"),
    ):
        with pytest.raises(ValueError, match=problem):
            open_source(str(path), kind, labels)
    (tmp_path / "shards.json").write_text("{}")
    with pytest.raises(ValueError, match="prepared already"):
        open_source(str(tmp_path))
    assert np.array_equal(open_source(str(tmp_path), "folder").load(0)[0, 0], [0, 0, 0])
