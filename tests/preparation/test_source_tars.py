# SPDX-License-Identifier: Apache-2.0
"""Images in tar files: keys, classes, splits, and archives that were made to do harm."""

import gzip
import io
import pickle
import tarfile

import pytest
from PIL import Image

from scm_lightning.preparation.sources import UnreadableImageError, open_source


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(file, members):
    """A tar file of (name, content) pairs; a content may be a member's header instead."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                archive.addfile(member)
    return str(file)


def samples(start, labels):
    for number, label in enumerate(labels, start):
        yield f"{number:04d}.png", png(number)
        yield f"{number:04d}.cls", label.encode()


def header(kind, target=""):
    member = tarfile.TarInfo("x.png")
    member.type, member.linkname = kind, target
    return member


def test_samples_of_a_folder_of_tar_files(tmp_path):
    write_tar(tmp_path / "b.tar", samples(3, ["7", "0\n"]))
    members = [("./sub/1.jpg", b"none"), ("sub/1.cls", b"2"), ("readme", b"")]
    directory = tarfile.TarInfo("sub")
    directory.type = tarfile.DIRTYPE
    write_tar(tmp_path / "a.tar", [("", directory), *members, ("sub/1.seg.png", png(0))])
    source = open_source(str(tmp_path))
    assert source.kind == "webdataset"
    assert [item[:3] for item in source.items] == [
        ("a.tar/sub/1", 2, ""),
        ("b.tar/0003", 7, ""),
        ("b.tar/0004", 0, ""),
    ]
    assert source.class_names == [str(number) for number in range(8)]
    travelled = pickle.loads(pickle.dumps(source))
    assert [int(travelled.load(number)[0, 0, 0]) for number in (1, 2)] == [3, 4]
    with pytest.raises(UnreadableImageError, match=r"a.tar/sub/1 cannot be read"):
        travelled.load(0)
    assert travelled.fingerprint() == source.fingerprint()


def test_patterns(tmp_path):
    for number in range(12):
        write_tar(tmp_path / f"{number:03d}.tar", samples(number, ["cat" if number % 2 else "dog"]))
    braces = open_source(f"{tmp_path}/{{003..011}}.tar")
    assert [item.name[:3] for item in braces.items] == [f"{number:03d}" for number in range(3, 12)]
    assert braces.class_names == ["cat", "dog"]
    assert [item.label for item in braces.items][:3] == [0, 1, 0]
    assert len(open_source(f"{tmp_path}/00*.tar").items) == 10
    assert len(open_source(f"{tmp_path}/005.tar").items) == 1
    for path, problem in (
        (f"{tmp_path}/{{011..013}}.tar", r"2 of 3 are missing, first .*012.tar"),
        (f"{tmp_path}/9*.tar", r"1 of 1 are missing, first .*9\*.tar"),
        (f"{tmp_path}/{{001,001}}.tar", "every file once, got"),
    ):
        with pytest.raises(ValueError, match=problem):
            open_source(path)


def test_words_of_the_paths_are_the_split(tmp_path):
    write_tar(tmp_path / "set-train-0.tar", samples(0, ["0", "1"]))
    write_tar(tmp_path / "set-validation-0.tar", samples(0, ["1"]))
    source = open_source(str(tmp_path))
    assert [item.split for item in source.items] == ["train", "train", "heldout"]
    write_tar(tmp_path / "more.tar", samples(0, ["1"]))
    assert {item.split for item in open_source(str(tmp_path)).items} == {""}


def test_all_images_have_a_class_or_none(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("0.png", png(0)), ("1.png", png(1)), ("1.txt", b"1")])
    assert open_source(path).class_names == []
    path = write_tar(tmp_path / "x.tar", [("0.png", png(0)), *samples(1, ["1"])])
    with pytest.raises(ValueError, match=r"1 without of 2, first x.tar/0; add"):
        open_source(path)


@pytest.mark.parametrize(
    ("content", "problem"), [(b"\xff", "must be text"), (b"x" * (1 << 20) + b"x", "a few letters")]
)
def test_strange_labels_are_refused(tmp_path, content, problem):
    path = write_tar(tmp_path / "x.tar", [("0.png", png(0)), ("0.cls", content)])
    with pytest.raises(ValueError, match=rf"0.cls of .*x.tar .*{problem}"):
        open_source(path)


@pytest.mark.parametrize(
    "member",
    [
        ("", header(tarfile.SYMTYPE, "/etc/passwd")),
        ("", header(tarfile.LNKTYPE, "0000.png")),
        ("", header(tarfile.CHRTYPE)),
        ("", header(tarfile.FIFOTYPE)),
        ("", header(tarfile.GNUTYPE_SPARSE)),
        ("../x.png", b"x"),
        ("a/../../x.png", b"x"),
        ("/x.png", b"x"),
        ("0000.jpg", b"x"),
        ("0000.png", b"x"),
    ],
)
def test_traps_are_refused(tmp_path, member):
    path = write_tar(tmp_path / "x.tar", [*samples(0, ["1"]), member, *samples(1, ["1"])])
    with pytest.raises(ValueError, match=r"regular files only|leads outside|got two"):
        open_source(path)


def test_what_is_cut_or_claims_to_be_larger_than_the_file_is_refused(tmp_path):
    file = tmp_path / "x.tar"
    write_tar(file, samples(0, ["1", "2"]))
    content = file.read_bytes()
    for kept in (300, 512, 1000, 1024, 2048, 3000):
        file.write_bytes(content[:kept])
        with pytest.raises(ValueError, match="whole tar file"):
            open_source(str(file))
    huge = tarfile.TarInfo("0.png")
    huge.size = 10 << 30
    file.write_bytes(huge.tobuf() + bytes(2048))
    with pytest.raises(ValueError, match="ends outside"):
        open_source(str(file))
    negative = bytearray(content)
    negative[124:136] = b"\xff" * 11 + b"\x00"  # the size, in base 256
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative[:512])
    file.write_bytes(negative)
    with pytest.raises(ValueError, match="whole tar file"):
        open_source(str(file))


def test_compressed_tar_files_are_refused(tmp_path):
    file = tmp_path / "x.tar"
    write_tar(file, samples(0, ["1"]))
    file.write_bytes(gzip.compress(file.read_bytes()))
    with pytest.raises(ValueError, match=r"unpack .gz first"):
        open_source(str(file))


def test_an_archive_that_became_shorter_is_noticed(tmp_path):
    file = tmp_path / "x.tar"
    source = open_source(write_tar(file, samples(0, ["1"])))
    file.write_bytes(file.read_bytes()[:520])
    with pytest.raises(UnreadableImageError, match=r"x.tar/0000 cannot be read: .* shorter"):
        source.load(0)
