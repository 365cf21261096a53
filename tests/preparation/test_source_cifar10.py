# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 in files of their real formats, and pickles that were made to act."""

import io
import os
import pickle
import struct
import tarfile
import warnings

import numpy as np
import pytest

from scm_lightning.preparation.sources import open_source
from scm_lightning.preparation.sources.cifar10 import BATCHES, read_batch

NUM = 7


def text(content):
    """A text of Python 2, which is bytes for Python 3."""
    return b"U" + bytes([len(content)]) + content


def pickled_as_by_python_2(pixels, labels):
    """Instruction by instruction, as in the files that are handed out."""
    raw = pixels.tobytes()
    shape = b"M" + struct.pack("<H", len(pixels)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
    )
    array += b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = b"](" + b"".join(text(b"car_%d.png" % n) for n in range(len(labels))) + b"e"
    fields = [(b"data", array), (b"labels", numbers), (b"filenames", names)]
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in fields) + b"u."


def batch(number):
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (NUM, 3072), dtype=np.uint8), rng.integers(0, 10, NUM).tolist()


@pytest.fixture(params=["folder", "above", "archive"])
def cifar(request, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate(BATCHES):
        (folder / name).write_bytes(pickled_as_by_python_2(*batch(number)))
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as written:
        written.add(folder, folder.name)
    return {"folder": folder, "above": tmp_path, "archive": archive}[request.param]


def test_the_format_is_that_of_numpy():
    """The hand-made pickle means to Python what it should."""
    pixels, labels = batch(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy on its old names
        found = pickle.loads(pickled_as_by_python_2(pixels, labels), encoding="bytes")
    assert np.array_equal(found[b"data"], pixels)
    assert found[b"labels"] == labels


def test_cifar10(cifar):
    source = open_source(str(cifar))
    assert source.kind == "cifar10"
    assert [item.split for item in source.items] == ["train"] * 5 * NUM + ["heldout"] * NUM
    assert source.class_names[9] == "truck"
    assert source.items[NUM + 2].name == "data_batch_2/00002"
    travelled = pickle.loads(pickle.dumps(source))
    for number in (0, NUM + 2, 6 * NUM - 1):
        pixels, labels = batch(number // NUM)
        assert source.items[number].label == labels[number % NUM]
        image = travelled.load(number)
        assert image.shape == (32, 32, 3)
        assert np.array_equal(image.transpose(2, 0, 1).ravel(), pixels[number % NUM])
    assert travelled.fingerprint() == source.fingerprint()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_what_python_3_writes_in_protocol_2_is_read(order, as_bytes):
    pixels, labels = batch(3)
    fields = {"data": np.asarray(pixels, order=order), "labels": labels}
    if as_bytes:
        fields = {key.encode(): value for key, value in fields.items()}
    found = read_batch(pickle.dumps(fields, protocol=2), "it")
    assert np.array_equal(found[0], pixels)
    assert found[1] == labels


class Call:
    """What a pickle calls when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_that_act_do_not(tmp_path, protocol):
    """Every one of these acts if it is read by `pickle.loads`; the first is seen to."""
    canary = tmp_path / "canary"
    calls = [
        Call(os.mkdir, str(canary)),
        Call(eval, f"__import__('os').mkdir({str(canary)!r})"),
        Call(exec, f"import os; os.mkdir({str(canary)!r})"),
        Call(getattr, 1, "real"),
        Call(np.save, str(canary), 1),
        Call(np.frombuffer, b"x"),
    ]
    pixels, labels = batch(0)
    for call in calls:
        for fields in (call, {"data": call, "labels": labels}, {"data": pixels, "labels": [call]}):
            with pytest.raises(ValueError, match="refused"):
                read_batch(pickle.dumps(fields, protocol=protocol), "it")
    assert not list(tmp_path.iterdir())
    pickle.loads(pickle.dumps(calls[0], protocol=protocol))
    assert canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02.",
        b"\x80\x02}.",
        b"\x80\x02cos\nsystem\n.",
        b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",
        b"\x80\x02X\xff\xff\xff\xff.",
        pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 9), np.uint8), "labels": [0, 1]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, protocol=2),
        pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, protocol=2),
        pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["0"]}, protocol=2),
    ],
)
def test_pickles_of_other_things_are_refused(content):
    with pytest.raises(ValueError, match="it must be one of CIFAR-10's files"):
        read_batch(content, "it")


def test_instructions_that_would_take_memory_take_none():
    """A memory of two billion entries, a buffer of any length: they are listed, not followed."""
    for content in (b"]r\xff\xff\xff\x7f.", b"\x96" + b"\xff" * 7 + b"\x7fx."):
        with pytest.raises(ValueError, match="it must be one of CIFAR-10's files"):
            read_batch(b"\x80\x02" + content, "it")


def test_incomplete_data_are_refused(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("readme"))
    file = tmp_path / "cifar-10-python.tar.gz"
    file.write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="data_batch_1, which is missing"):
        open_source(str(file))
    file.write_bytes(content.getvalue()[:40])
    with pytest.raises(ValueError, match="must be a whole gzip file"):
        open_source(str(file))
    with pytest.raises(ValueError, match="data_batch_1, which is missing"):
        open_source(str(tmp_path), "cifar10")
