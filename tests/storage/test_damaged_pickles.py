# SPDX-License-Identifier: Apache-2.0
"""Pickles of networks that are damaged or of another layout, and other files in their place."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from storage.persistent_replica import (
    Node,
    Persistent,
    dumped,
    stability_encoder,
    tree,
    write_persistent,
)
from storage.pickle_payloads import net, planted, read, refusal, storage, text

from scm_lightning.storage.persistent_pickle import read_persistent


@pytest.mark.parametrize(
    "array",
    [np.zeros(2, each) for each in ("O", "V8", ">f4", "f4,i4", "U3", "c8", "M8[s]")],
    ids=lambda each: str(each.dtype),
)
@pytest.mark.parametrize("old", [True, False])
def test_arrays_of_anything_but_numbers_are_refused(array, old, tmp_path):
    content = {"ema": Persistent("Precond", {"a": array})}
    said = refusal(dumped(content, old), tmp_path)
    assert "array of" in said or "number of" in said


def test_an_array_has_all_its_bytes(tmp_path):
    written = dumped({"ema": 1, "a": np.arange(3.0)})
    assert written.count(b"K\x03\x85") == 1
    said = refusal(written.replace(b"K\x03\x85", b"K\x04\x85"), tmp_path)
    assert "4 numbers with the bytes of another" in said


@pytest.mark.parametrize("old", [True, False])
def test_arrays_of_numbers_come_as_tensors(old, tmp_path):
    arrays = {
        each: np.arange(6).reshape(2, 3).astype(each)
        for each in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
    }
    arrays |= {"columns": np.asfortranarray(arrays["f4"]), "none": np.zeros((0, 3), "f4")}
    values = {"number": np.sqrt(0.5), "count": np.int64(3), "yes": np.bool_(True)}
    more = {"also": np.bool_(True), "float16": np.float16(0.5)}
    attributes = {**arrays, **values, **more}
    (tmp_path / "net.pkl").write_bytes(dumped({"ema": Persistent("P", attributes)}, old))
    found = read_persistent(tmp_path / "net.pkl").ema
    for key, array in arrays.items():
        assert torch.equal(found.attribute(key), torch.from_numpy(np.ascontiguousarray(array)))
    for key, value in {**values, **more}.items():
        assert found.attribute(key) == value
        assert not isinstance(found.attribute(key), np.generic)


def test_objects_of_another_layout_are_refused(tmp_path):
    for changed, why in (
        ({"version": 5}, "version 6"),
        ({"version": "6"}, "version 6"),
        ({"type": "function"}, "without type"),
        ({"class_name": 3}, "without type"),
        ({"class_name": "two\nlines"}, "without type"),
        ({"module_src": None}, "without type"),
        ({"state": [1]}, "named values"),
        ({"state": {1: 2}}, "named values"),
        ({"state": {"two\nlines": 2}}, "named values"),
    ):
        one = Persistent("Precond", {})
        one.meta |= changed
        assert why in refusal(planted(tmp_path, one), tmp_path)


def test_a_file_without_a_network_is_refused(tmp_path):
    for content, why in (
        ({"G_ema": 1}, "no `ema`"),
        ([1], "no `ema`"),
        ({"ema": "text"}, "`ema` is a str"),
        ({"ema": None}, "`ema` is a NoneType"),
        ({"ema": Persistent("P", {}), "encoder": 3}, "`encoder` is a int"),
    ):
        assert why in refusal(dumped(content), tmp_path)
    for weight, why in (
        (torch.tensor([1.0, float("nan")]), "other is not finite"),
        (torch.tensor([1.0, float("inf")]), "other is not finite"),
        ("text", "other is a str"),
    ):
        file = write_persistent(tmp_path / "net.pkl", net(), "edm2")
        read(file, tmp_path)
        broken = Node("Precond", children={"model": Node("UNet", buffers={"other": weight})})
        write_persistent(file, broken, "edm2")
        with pytest.raises(ValueError, match=why):
            read_persistent(file).ema.state_dict()
    loss = Persistent("EDMLoss", {"sigma_data": 0.5})
    (tmp_path / "net.pkl").write_bytes(dumped({"ema": loss}))
    with pytest.raises(ValueError, match="EDMLoss has no _parameters"):
        read_persistent(tmp_path / "net.pkl").ema.state_dict()


def module(children, **parameters) -> Persistent:
    return Persistent("M", {"_parameters": parameters, "_buffers": {}, "_modules": children})


def test_modules_without_end_are_refused(tmp_path):
    """A module in itself; one that is in the network 2^30 times; thousands of levels."""
    itself = {}
    itself["a"] = module(itself)
    assert "twice" in unread(module(itself), tmp_path)
    laughs = module({})
    for _ in range(30):
        laughs = module({"a": laughs, "b": laughs})
    assert "twice" in unread(laughs, tmp_path)
    deep = module({})
    for _ in range(100):
        deep = module({"a": deep})
    assert "deeper than" in unread(deep, tmp_path)


def unread(ema: Persistent, folder: Path) -> str:
    (folder / "net.pkl").write_bytes(dumped({"ema": ema}))
    found = read_persistent(folder / "net.pkl").ema
    with pytest.raises(ValueError, match=r"must|its|it has") as caught:
        found.state_dict()
    return str(caught.value)


@pytest.mark.parametrize(("begin", "end"), [(b"]", b"a"), (b"", b"\x85"), (b"}K\x01", b"s")])
def test_values_nested_without_end_harm_nobody(begin, end, tmp_path):
    """Dropped, as all that is not the network; and a tuple of them is never hashed."""
    nested = begin * 50_000 + b"N" + end * 50_000
    ema = dumped({"ema": Persistent("P", {})}, True)[2:-1]
    whole = b"\x80\x04" + ema + b"(" + text("a") + nested + b"u."
    (tmp_path / "net.pkl").write_bytes(whole)
    assert read_persistent(tmp_path / "net.pkl").ema.class_name == "P"


def test_many_instructions_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("scm_lightning.storage.inert_pickle.MOST_INSTRUCTIONS", 1000)
    assert "more than 1,000" in refusal(b"\x80\x04]" + b"Na" * 1000 + b".", tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    weights = {"model.enc.8x8.weight": torch.ones(2, 3), "model.enc.8x8.bias": torch.ones(2)}
    made = tree(weights, {"": "Precond", "model": "UNet", "model.enc": "ModuleDict"})
    file = tmp_path_factory.mktemp("whole") / "net.pkl"
    return write_persistent(file, made, "edm2", encoder=stability_encoder()).read_bytes()


def test_a_file_that_ends_early_is_refused(whole, tmp_path):
    for end in [*range(3, len(whole) - 1, 97), len(whole) - 1]:
        refusal(whole[:end], tmp_path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # inside pickletools
def test_flipped_bytes_are_read_as_data_or_refused(whole, tmp_path):
    """Whatever the change, the outcome is a network or one line."""
    numbers = random.Random(0)
    said = []
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(numbers.choice((1, 1, 4))):
            changed[numbers.randrange(2, len(changed))] = numbers.randrange(256)
        try:
            read(bytes(changed), tmp_path)
        except ValueError as error:
            said.append(str(error))
    assert 30 < len(said) < 300
    assert not any("\n" in each for each in said)


def test_other_files_in_its_place_are_named(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "other.pt")
    old = storage()
    for content, what in (
        (b"", "an empty file; download"),
        (b"\n  \n", "an empty file"),
        (b"<!DOCTYPE html>\n<html><body>404", "an HTML page; download"),
        (b"\n<HTML lang=en>", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "an XML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1123456\n",
            "a Git LFS pointer, which only names the file; run `git lfs pull`",
        ),
        ((tmp_path / "other.safetensors").read_bytes(), "a safetensors file"),
        ((tmp_path / "other.pt").read_bytes(), "a file of torch.save"),
        (old, "a file of torch.save"),
        (b"\x93NUMPY\x01\0", r"a file that begins with b'\x93NUMPY"),
    ):
        assert f"must be a pickle, got {what}" in refusal(content, tmp_path)
    with pytest.raises(FileNotFoundError):
        read_persistent(tmp_path / "missing.pkl")
    with pytest.raises(ValueError, match="must be a regular file, got a folder"):
        read_persistent(tmp_path)
