# SPDX-License-Identifier: Apache-2.0
"""Fifty kinds of damaged input: each is an error in one line that names what, or a counted skip."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from small_sets import write_set

from scm_lightning.data import Reading, Shards

SHAPE = (2, 3, 5)
SHARD = "train-000001.tar"
KEY = "00000006"
"""The third sample of that shard, of four."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three training shards of four float samples."""
    folder = tmp_path_factory.mktemp("whole") / "shards"
    arrays = np.random.default_rng(0).normal(size=(12, *SHAPE)).astype(np.float32)
    splits = {"train": (arrays, np.arange(12) % 3), "heldout": (arrays[:4], np.arange(4) % 3)}
    write_set(folder, splits, 3, 1.0, 4)
    return folder


def members(file):
    with tarfile.open(file) as archive:
        return [(m, archive.extractfile(m).read() if m.isreg() else b"") for m in archive]


def rewrite(file, change):
    """Write the tar anew with every (name, content) changed; None leaves one out."""
    changed = [(m, change(m, content)) for m, content in members(file)]
    with tarfile.open(file, "w") as archive:
        for member, content in changed:
            if content is not None:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def array(value):
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def member_is(name, content):
    """Give one member of the damaged sample another content; None removes it."""

    def damage(folder):
        changed = f"{KEY}.{name}"
        rewrite(folder / SHARD, lambda m, old: content if m.name == changed else old)

    return damage


def bytes_are(change):
    """Change the bytes of the shard."""

    def damage(folder):
        file = folder / SHARD
        file.write_bytes(change(file.read_bytes()))

    return damage


def entry(kind=tarfile.REGTYPE, name=f"{KEY}.x.npy", **fields):
    """Turn the sample's array into another kind of entry of the tar file."""

    def damage(folder):
        def change(member, content):
            if member.name != f"{KEY}.x.npy":
                return content
            member.type, member.name = kind, name
            for field, value in fields.items():
                setattr(member, field, value)
            return b"" if kind != tarfile.REGTYPE else content

        rewrite(folder / SHARD, change)

    return damage


def twice(folder):
    file = folder / SHARD
    entries = members(file)
    with tarfile.open(file, "w") as archive:
        for member, content in [*entries, *entries[-2:]]:
            archive.addfile(member, io.BytesIO(content))


def interleaved(folder):
    """Arrays first, then labels: members of a sample apart."""
    file = folder / SHARD
    entries = sorted(members(file), key=lambda entry: entry[0].name.endswith("cls"))
    with tarfile.open(file, "w") as archive:
        for member, content in entries:
            archive.addfile(member, io.BytesIO(content))


def flipped(offset):
    def change(content):
        damaged = bytearray(content)
        damaged[offset] ^= 0xFF
        return bytes(damaged)

    return bytes_are(change)


def zeroed(start, size):
    return bytes_are(lambda c: c[:start] + bytes(size) + c[start + size :])


NAN = np.full(SHAPE, np.nan, np.float32)
ONE_INF = np.where(np.arange(30).reshape(SHAPE) == 7, np.inf, 0).astype(np.float32)
ZEROS = np.zeros(SHAPE, np.float32)
HUGE = array(ZEROS).replace(b"(2, 3, 5), }        ", b"(9999999999999999,)}")
CODE = array(ZEROS).replace(b"False", b"f()  ")
ARCHIVE = io.BytesIO()
np.savez(ARCHIVE, ZEROS)
DAMAGES = {
    "shard missing": lambda folder: (folder / SHARD).unlink(),
    "shard empty": bytes_are(lambda c: b""),
    "shard of garbage": bytes_are(lambda c: np.random.default_rng(1).bytes(len(c))),
    "shard of zeros": bytes_are(lambda c: bytes(len(c))),
    "shard of text": bytes_are(lambda c: b"<html>404 not found</html>"),
    "shard compressed": bytes_are(lambda c: __import__("gzip").compress(c)),
    "shard is a folder": lambda folder: ((folder / SHARD).unlink(), (folder / SHARD).mkdir()),
    "cut within a header": bytes_are(lambda c: c[:4300]),
    "cut within a sample": bytes_are(lambda c: c[: len(c) // 3]),
    "cut between samples": bytes_are(lambda c: c[: 512 * 8]),
    "cut by its last byte of data": bytes_are(lambda c: c[: 512 * 14 - 1]),
    "first header flipped": flipped(100),
    "a later header flipped": flipped(512 * 8 + 150),
    "first block zeroed": zeroed(0, 512),
    "header in the middle zeroed": zeroed(512 * 8, 512),
    "4 KiB zeroed": zeroed(512 * 6, 4096),
    "magic of an array flipped": flipped(512),
    "array empty": member_is("x.npy", b""),
    "array of garbage": member_is("x.npy", b"rubbish"),
    "array cut": member_is("x.npy", array(ZEROS)[:-1]),
    "array cut in its header": member_is("x.npy", array(ZEROS)[:40]),
    "array of objects": member_is("x.npy", array(np.array([print], object))),
    "array pickled": member_is("x.npy", __import__("pickle").dumps(ZEROS)),
    "array of an endless shape": member_is("x.npy", HUGE),
    "array of code in its header": member_is("x.npy", CODE),
    "array archive": member_is("x.npy", ARCHIVE.getvalue()),
    "array of another shape": member_is("x.npy", array(np.zeros((2, 5, 3), np.float32))),
    "array without channels": member_is("x.npy", array(np.zeros((3, 5), np.float32))),
    "array with too many values": member_is("x.npy", array(np.zeros((3, 3, 5), np.float32))),
    "array of bytes": member_is("x.npy", array(np.zeros(SHAPE, np.uint8))),
    "array of float64": member_is("x.npy", array(np.zeros(SHAPE))),
    "array of text": member_is("x.npy", array(np.full(SHAPE, "a"))),
    "array of complex numbers": member_is("x.npy", array(ZEROS.astype(np.complex64))),
    "array missing": member_is("x.npy", None),
    "one NaN everywhere": member_is("x.npy", array(NAN)),
    "one infinity": member_is("x.npy", array(ONE_INF)),
    "label missing": member_is("cls", None),
    "label empty": member_is("cls", b""),
    "label of text": member_is("cls", b"cat"),
    "label a fraction": member_is("cls", b"1.5"),
    "label of bytes": member_is("cls", b"\xff\xfe"),
    "label beyond the classes": member_is("cls", b"3"),
    "label negative": member_is("cls", b"-1"),
    "label enormous": member_is("cls", b"9" * 5000),
    "entry a symbolic link": entry(tarfile.SYMTYPE, linkname="/etc/passwd"),
    "entry a hard link": entry(tarfile.LNKTYPE, linkname="00000004.x.npy"),
    "entry a device": entry(tarfile.CHRTYPE, devmajor=1, devminor=3),
    "entry a folder": entry(tarfile.DIRTYPE),
    "entry a pipe": entry(tarfile.FIFOTYPE),
    "entry leads out of the folder": entry(name=f"../../{KEY}.x.npy"),
    "entry absolute": entry(name=f"/{KEY}.x.npy"),
    "sample missing": lambda folder: rewrite(
        folder / SHARD, lambda m, c: None if m.name.startswith(KEY) else c
    ),
    "sample twice": twice,
    "members of samples apart": interleaved,
}  # fmt: skip


def data_of(folder, mapped, num_workers=0):
    reading = Reading(mapped=mapped)
    return Shards(0.7, str(folder), 5, num_workers=num_workers, reading=reading)


def use(data):
    """Train for a pass, then read everything that samples are compared with."""
    data.setup("fit")
    for batch in data.train_dataloader():
        assert len(batch.indices)
    for batch in data.reference_batches():
        assert bool(batch.x0.isfinite().all())


def test_there_are_fifty_kinds():
    assert len(DAMAGES) + len(INDICES) >= 50


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_shards(whole, tmp_path, kind, mapped):
    """Refused with shard, and key where there is one."""
    folder = tmp_path / "shards"
    shutil.copytree(whole, folder)
    DAMAGES[kind](folder)
    with pytest.raises(ValueError, match=rf"{SHARD}") as refused:
        use(data_of(folder, mapped))
    assert "\n" not in str(refused.value)
    # Sizes give most away at once; the content must as well.
    index = json.loads((folder / "shards.json").read_text())
    for shard in index["splits"]["train"]["shards"]:
        if shard["name"] == SHARD and (folder / SHARD).is_file():
            shard["num_bytes"] = (folder / SHARD).stat().st_size
    (folder / "shards.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"{SHARD}") as refused:
        use(data_of(folder, mapped))
    assert "\n" not in str(refused.value)


def test_a_damaged_sample_in_a_worker_is_one_line(whole, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(whole, folder)
    DAMAGES["one infinity"](folder)
    with pytest.raises(ValueError, match=rf"^sample {KEY} of shard .*{SHARD} is dam") as refused:
        use(data_of(folder, mapped=False, num_workers=1))
    assert "\n" not in str(refused.value)


def changed(**fields):
    return lambda text: json.dumps({**json.loads(text), **fields})


def first_shard(**fields):
    def change(text):
        index = json.loads(text)
        index["splits"]["train"]["shards"][0] |= fields
        return json.dumps(index)

    return change


INDICES = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "of another version": changed(format_version=99),
    "without splits": changed(splits={}),
    "without held-out data": lambda text: text.replace('"heldout"', '"test"'),
    "with a field too many": changed(extra=1),
    "with a mean too few": changed(mean=[0.0]),
    "with no deviation": changed(std=[1.0, 0.0]),
    "with a deviation that is no number": changed(std=[1.0, float("nan")]),
    "of another type": changed(dtype="object"),
    "with a shard elsewhere": first_shard(name="../../etc/passwd"),
    "with a command": first_shard(name="pipe:touch hacked"),
    "with a shard without size": first_shard(num_samples="four"),
    "shard larger than listed": first_shard(num_bytes=1),
    "with a mean beyond any float": changed(mean=[0.0, 10**400]),
    "with a deviation beyond any float": changed(std=[1.0, 10**400]),
    "with a deviation that float32 rounds to 0": changed(std=[1.0, 1e-50]),
    "with a largest value beyond any float": changed(max_value=10**400),
    "with a largest value that float32 rounds to 0": changed(max_value=1e-50),
    "with classes beyond any integer": changed(num_classes=10**400),
    "with classes beyond any memory": changed(num_classes=10**12),
    "with a shape beyond any integer": changed(shape=[2, 3, 10**400]),
    "with unreadable files beyond any integer": changed(num_unreadable=10**400),
    "with samples beyond any integer": first_shard(num_samples=10**400, num_bytes=10**404),
    "with samples beyond any memory": first_shard(num_samples=10**12, num_bytes=10**15),
    "of a version of lines": changed(format_version="\n2\n"),
    "of a version beyond any integer": changed(format_version=10**400),
}


@pytest.mark.parametrize("kind", INDICES)
def test_damaged_indices(whole, tmp_path, kind):
    folder = tmp_path / "shards"
    shutil.copytree(whole, folder)
    file = folder / "shards.json"
    file.write_text(INDICES[kind](file.read_text()))
    with pytest.raises(ValueError, match=r"prepare|remove") as refused:
        use(data_of(folder, mapped=None))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("mapped", [True, False])
def test_a_batch_larger_than_the_split_is_refused(whole, mapped):
    """Before an array of that size is made: 10**12 samples fit into no memory."""
    for batch_size in (13, 10**12):
        data = Shards(0.7, str(whole), batch_size, reading=Reading(mapped=mapped))
        data.setup("fit")
        with pytest.raises(ValueError, match=rf"at most the 12 training .*, got {batch_size};"):
            data.train_dataloader()
