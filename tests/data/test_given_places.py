# SPDX-License-Identifier: Apache-2.0
"""Paths of data as they are typed, and what may stand there: pipes, devices, bombs, commands."""

import gzip
import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import write_set

from scm_lightning.cli import main
from scm_lightning.data import (
    Sample,
    ShardIndex,
    Shards,
    read_shard,
    write_shard,
)
from scm_lightning.data.location import place_of, read_file
from scm_lightning.preparation import Digits
from scm_lightning.preparation.sources import open_source
from scm_lightning.preparation.sources.fashion import read_idx

NAMES = ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png", "a/2.png", "a/3.png", "b/3.png")
COMMAND = "pipe:touch hacked; cat > /dev/null; #"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with pictures, a table of their classes, and shards; another folder is the current."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    for number, name in enumerate(NAMES):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5), (number, 2 * number, 3 * number)).save(
            tmp_path / "pictures" / name
        )
    rows = [f"{name},{name[0]}" for name in NAMES]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    arrays = np.random.default_rng(0).normal(size=(8, 1, 2, 2)).astype(np.float32)
    splits = {"train": (arrays, np.arange(8) % 2), "heldout": (arrays, np.arange(8) % 2)}
    write_set(tmp_path / "shards", splits, 2, 1.0, 4)
    return tmp_path


def test_home_is_meant_by_a_tilde(home):
    data = Shards(0.7, "~/shards", 4)
    data.prepare_data()
    data.setup("fit")
    assert len(next(iter(data.train_dataloader())).x0) == 4
    of_latents = Shards(0.7, "~/shards", 4, autoencoder="~/autoencoder")
    assert of_latents.autoencoder == f"{home}/autoencoder"
    source = open_source("~/pictures", labels="~/labels.csv")
    assert source.description == f"folder {home}/pictures"
    Digits(0.7, "~/digits").prepare_data()
    assert (home / "digits" / "shards.json").is_file()
    words = ["--source", "~/pictures", "--out", "~/out", "--labels", "~/labels.csv"]
    main(["prepare", *words, "--size", "4", "--workers", "0", "--heldout", "2"])
    assert ShardIndex.read(home / "out").class_names == ["a", "b"]
    assert (home / "out" / "contact_sheet.png").is_file()
    assert not any(Path().iterdir())


def test_names_of_variables_are_refused(home, capsys):
    for make in (
        lambda: Shards(0.7, "$DATA/shards"),
        lambda: Shards(0.7, "shards", autoencoder="${DATA}/autoencoder"),
        lambda: open_source("$DATA/pictures"),
        lambda: open_source(str(home / "pictures"), labels="$DATA/labels.csv"),
    ):
        with pytest.raises(ValueError, match="must not hold the variable"):
            make()
    with pytest.raises(SystemExit):
        main(["prepare", "--source", str(home / "pictures"), "--out", "$DATA/out"])
    assert "must not hold the variable $DATA" in capsys.readouterr().err
    assert not any(Path().iterdir())


def test_places_that_are_no_folders_are_left_as_they_are():
    for place in ("https://host/~/$x", "pipe:cat $HOME/{name}", "gs://~"):
        assert Shards(0.7, place).root == place


def test_writing_runs_no_command(home, capsys):
    for write in (
        lambda: Digits(0.7, COMMAND).prepare_data(),
        lambda: Digits(0.7, f"./{COMMAND}").prepare_data(),
    ):
        with pytest.raises(ValueError, match="must be written into a folder, got pipe:touch"):
            write()
    words = ["--out", COMMAND, "--size", "4", "--workers", "0", "--heldout", "2"]
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "--source", str(home / "pictures"), *words])
    assert ended.value.code == 2
    assert "must be written into a folder" in capsys.readouterr().err
    shard = write_shard(Path("pipe:touch hacked"), [Sample(np.zeros((1, 2)), 0, "0")])
    assert shard.num_bytes == Path("pipe:touch hacked").stat().st_size
    assert os.listdir() == ["pipe:touch hacked"]


def test_a_folder_that_is_named_like_a_command_is_a_folder(home):
    """With ./ before it, also for every file in it."""
    (home / "shards").rename("pipe:touch hacked;#")
    data = Shards(0.7, "./pipe:touch hacked;#", 4)
    data.prepare_data()
    data.setup("fit")
    assert len(next(iter(data.train_dataloader())).x0) == 4
    assert len(list(data.reference_batches())) == 1
    assert place_of("./pipe:x", "a.tar") == "./pipe:x/a.tar"
    assert os.listdir() == ["pipe:touch hacked;#"]


def device_at(file):
    """A device that is read without end, or at once, in the place of a file."""
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/null")
    return file


@pytest.mark.parametrize("put", [device_at, lambda file: os.mkfifo(file) or file])
def test_only_regular_files_are_read(home, put):
    """No pipe is waited for."""
    pictures = home / "pictures"
    for name, kind in (("x.zip", "zip"), ("cifar.tar.gz", "cifar10")):
        with pytest.raises(ValueError, match="must be a regular file, got a"):
            open_source(str(put(home / name)), kind)
    with pytest.raises(ValueError, match="must be a regular file, got a"):
        open_source(str(pictures), labels=str(put(home / "table.csv")))
    put(pictures / "dataset.json")
    with pytest.raises(ValueError, match=r"dataset.json must be a regular file, got a"):
        open_source(str(pictures))
    with pytest.raises(ValueError, match="must be a regular file, got a"):
        next(read_shard(str(put(home / "x.tar"))))
    with pytest.raises(ValueError, match="must be a regular file, got a"):
        read_file(str(put(home / "x.json")), 100)
    (home / "y").mkdir()
    put(home / "y" / "shards.json")
    with pytest.raises(ValueError, match="must be a regular file, got a"):
        ShardIndex.read(home / "y")


def test_files_are_read_up_to_a_size(home, monkeypatch):
    monkeypatch.setattr("scm_lightning.preparation.sources.labels.MAX_TABLE_BYTES", 50)
    with pytest.raises(ValueError, match="must have at most 50 bytes, got more"):
        open_source(str(home / "pictures"), labels=str(home / "labels.csv"))
    monkeypatch.setattr("scm_lightning.data.index.MAX_INDEX_BYTES", 50)
    with pytest.raises(ValueError, match="must have at most 50 bytes, got more"):
        ShardIndex.read(home / "shards")
    with pytest.raises(ValueError, match="must have at most 3 bytes, got more"):
        read_file("pipe:echo abc", 3)


def test_small_files_that_unpack_to_large_ones_are_refused(tmp_path):
    """A million images that are all zeros; an archive whose first name has 300 million letters."""
    bomb = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(bomb, "wb", 1) as written:
        written.write(bytes((0, 0, 8, 3)) + struct.pack(">3I", 1 << 17, 28, 28))
        for _ in range(28 * 28):
            written.write(bytes(1 << 17))
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match="must unpack to at most"):
        read_idx(bomb, 3)
    size = 300_000_000
    named = tarfile.TarInfo("././@LongLink")
    named.type, named.size = tarfile.GNUTYPE_LONGNAME, size
    archive = tmp_path / "cifar-10-python.tar.gz"
    with gzip.open(archive, "wb", 1) as written:
        written.write(named.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size // 1_000_000):
            written.write(b"a" * 1_000_000)
    with pytest.raises(ValueError, match="must unpack to at most"):
        open_source(str(archive))


def test_headers_of_a_tar_file_are_read_up_to_a_size(tmp_path):
    """The name that the first header announces would fill the file, which has no blocks."""
    named = tarfile.TarInfo("././@LongLink")
    named.type, named.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    file = tmp_path / "a.tar"
    with file.open("wb") as written:
        written.write(named.tobuf(tarfile.GNU_FORMAT))
        written.truncate(1 << 33)
    with pytest.raises(ValueError, match="a header claims 4294967296 bytes"):
        open_source(str(file))


def test_a_sample_keeps_only_what_it_needs(tmp_path):
    """However many other members of its key there are."""
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as written:
        buffer = io.BytesIO()
        np.save(buffer, np.ones((1, 2), np.uint8))
        contents = {f"0.{n}": b"other" for n in range(5)}
        for name, content in {**contents, "0.x.npy": buffer.getvalue(), "0.cls": b"1"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            written.addfile(member, io.BytesIO(content))
    (sample,) = read_shard(str(shard))
    assert (sample.label, sample.array.tolist()) == (1, [[1, 1]])
