# SPDX-License-Identifier: Apache-2.0
"""Files that would harm who opens them as networks: refused in one line, and nothing has run.

Every payload would make the canary, a file, if it were run.
"""

import io
import os
import pickle
import random
import struct
import sys
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

from scm_lightning.storage.persistent_pickle import MAKERS, PersistentFile, read_persistent

CANARY = "canary"


class Calls:
    """An object that is made by a call when it is read."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = function, arguments, state

    def __reduce__(self):
        return self.reduced


def storage(content=None):
    """Bytes of a tensor's storage as they are in a pickle."""
    tensor = torch.tensor([1.0, 2.0, 3.0, 4.0]) if content is None else content
    written = io.BytesIO()
    of_torch = isinstance(tensor, torch.Tensor)
    torch.save(
        tensor.storage() if of_torch else tensor, written, _use_new_zipfile_serialization=False
    )
    return written.getvalue()


def tensor(*arguments, data=None):
    """A tensor as it is in a pickle: offset, size, stride of four numbers."""
    inner = Calls(torch.storage._load_from_bytes, storage() if data is None else data)
    return Calls(torch._utils._rebuild_tensor_v2, inner, *arguments, False, {})


def net(**more) -> Node:
    return Node("Precond", {"w": torch.ones(2, 3), **more}, attributes={"sigma_data": 0.7})


def read(content: bytes | Path, folder: Path) -> PersistentFile:
    file = content if isinstance(content, Path) else folder / "net.pkl"
    if isinstance(content, bytes):
        file.write_bytes(content)
    found = read_persistent(file)
    found.ema.state_dict()
    return found


def refusal(content, folder: Path) -> str:
    """The one line of a refusal, without the name of the file; nothing was run for it."""
    before = {*sys.modules}
    with pytest.raises(ValueError, match=r"must|its|it has") as caught:
        read(content, folder)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 500
    assert not (folder / CANARY).exists()
    assert not {each for each in {*sys.modules} - before if each.startswith(("torch_", "dnn"))}
    return said


def planted(folder: Path, value, **more) -> Path:
    return write_persistent(folder / "net.pkl", net(), "edm", augment_pipe=value, **more)


@pytest.mark.parametrize("style", ["edm", "edm2"])
def test_source_code_in_a_file_is_not_run(style, tmp_path):
    source = f"open({str(tmp_path / CANARY)!r}, 'w')"
    file = write_persistent(tmp_path / "net.pkl", net(), style, source=source)
    assert read(file, tmp_path).ema.class_name == "Precond"
    assert len(read(file, tmp_path).ema.source_sha256) == 64
    assert not (tmp_path / CANARY).exists()


CALLS = (
    (os.system, "touch {}"),
    (eval, "open({!r}, 'w')"),
    (exec, "open({!r}, 'w')"),
    (open, "{}"),
    (getattr, "{}"),
    (torch.load, "{}"),
    (torch.save, "{}"),
    (pickle.loads, "{}"),
    (np.save, "{}"),
)


@pytest.mark.parametrize(("function", "said"), CALLS, ids=lambda each: str(each)[:30])
def test_calls_are_refused_wherever_they_are(function, said, tmp_path):
    """In what is not kept, in the network's attributes, and in the bytes of a tensor."""
    call = Calls(function, said.format(str(tmp_path / CANARY)))
    assert "it names" in refusal(planted(tmp_path, call), tmp_path)
    assert "it names" in refusal(planted(tmp_path, [{"a": (call,)}]), tmp_path)
    file = write_persistent(tmp_path / "net.pkl", net(other=call), "edm")
    assert "it names" in refusal(file, tmp_path)
    inside = tensor(0, (2,), (1,), data=storage(content=call))
    said = refusal(planted(tmp_path, inside), tmp_path)
    assert "unsupported" in said.lower()
    assert "weights_only" not in said  # torch's own advice is to run it


def test_a_tensor_whose_bytes_are_something_else_is_refused(tmp_path):
    call = Calls(os.system, f"touch {tmp_path / CANARY}")
    zipped = io.BytesIO()
    torch.save(call, zipped)
    for data in (pickle.dumps(call), zipped.getvalue(), b"", b"x" * 99):
        inside = tensor(0, (2,), (1,), data=data)
        assert "not a storage" in refusal(planted(tmp_path, inside), tmp_path)
    whole = storage(content={"a": torch.ones(2)})  # a whole file, of no storage
    inside = tensor(0, (2,), (1,), data=whole)
    assert "not a storage" in refusal(planted(tmp_path, inside), tmp_path)


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


PERSISTENT = name("torch_utils.persistence", "_reconstruct_persistent_obj")
CONTAINER = name("torch.nn.modules.container", "ModuleDict") + b")\x81"
INSTRUCTIONS = {
    "dotted": (name("torch", "os.system") + text("x") + b"\x85R", "'torch.os.system'"),
    "dotted in the table": (
        name("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__"),
        "__globals__",
    ),
    "a prefix of the table": (name("torch.nn.modules", "container.ModuleDict"), "container"),
    "old global": (b"cos\nsystem\n", "'os.system'"),
    "a name of two lines": (text("a\n\x1b[2J") + text("b") + b"\x93", r"\n\x1b[2J"),
    "a name that is a number": (b"K\x01K\x02\x93", "not text"),
    "EXT1": (b"\x82\x01", "EXT1"),
    "EXT4": (b"\x84\x01\0\0\0", "EXT4"),
    "INST": (b"(ios\nsystem\n", "INST"),
    "OBJ": (b"(" + PERSISTENT + b"o", "OBJ"),
    "NEWOBJ_EX": (PERSISTENT + b")}\x92", "NEWOBJ_EX"),
    "a persistent id": (b"Pabc\n", "PERSID"),
    "a persistent id of a value": (b"K\x01Q", "BINPERSID"),
    "an out-of-band buffer": (b"\x97", "NEXT_BUFFER"),
    "a state of a dictionary": (b"}}" + text("__class__") + b"K\x01sb", "changes a dict"),
    "a state of a name": (PERSISTENT + b"}b", "changes a Global"),
    "a state in slots": (CONTAINER + b"N}" + text("__class__") + b"K\x01s\x86b", "named values"),
    "a second state": (CONTAINER + b"}" + text("a") + b"K\x01sb}b", "complete"),
    "a call of a number": (b"K\x01)R", "calls a int"),
    "a call without arguments": (PERSISTENT + b"K\x01R", "calls a Global"),
    "an item of a container": (CONTAINER + text("a") + b"K\x01s", "changes a PersistentObject"),
    "members of a tuple": (b")(K\x01e", "changes a tuple"),
    "a tuple as a key": (b"})K\x01s", "tuple as a key"),
    "half a pair": (b"}(K\x01u", "without a value"),
    "an empty stack": (b"00", "POP"),
    "values that lack": (b"\x87", "lacks its values"),
    "a mark that lacks": (b"t", "lacks its mark"),
    "values below a mark": (b"K\x01(\x85", "lacks its values"),
    "nothing kept": (b"h\x07", "value 7"),
    "an unknown instruction": (b"\xff", "must be a pickle"),
    "a terabyte of bytes": (b"\x8e" + struct.pack("<Q", 1 << 40), "1,099,511,627,776 bytes"),
    "a terabyte of text": (b"\x8d" + struct.pack("<Q", 1 << 40), "1,099,511,627,776 bytes"),
    "four gigabytes": (b"B" + struct.pack("<I", (1 << 32) - 1), "4,294,967,295 bytes"),
    "a frame of a terabyte": (b"\x95" + struct.pack("<Q", 1 << 40) + b"00", "POP"),
    "a number of a gigabyte": (b"\x8b" + struct.pack("<i", 1 << 30), "bytes"),
    "an array by its class": (name("numpy", "ndarray") + b"K\x02\x85R", "by its class"),
    "a dictionary of pairs": (name("collections", "OrderedDict") + b"]\x85R", "from arguments"),
}


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_instructions_that_weights_do_not_need_are_refused(kind, tmp_path):
    instructions, why = INSTRUCTIONS[kind]
    said = refusal(b"\x80\x04" + instructions + b".", tmp_path)
    assert why in said
    assert "must be a pickle of EDM, EDM2 or edm2_sCM" in said


def test_every_maker_refuses_what_it_does_not_know(tmp_path):
    """Each name of the table, called with arguments of all simple kinds."""
    for module, attribute in MAKERS:
        for arguments in (b")", b"K\x01\x85", b"N\x85", b"}\x85", b"]K\x01}\x87", b"C\x02ab\x85"):
            made = name(module, attribute) + arguments + b"R"
            assert "must be a pickle" in refusal(b"\x80\x04" + made + b".", tmp_path)


SHAPES = {
    "stride 0 with many numbers": (0, (10**12,), (0,)),
    "many numbers": (0, (10**12,), (1,)),
    "past the storage": (3, (2,), (1,)),
    "before the storage": (-1, (2,), (1,)),
    "a negative size": (0, (-2, -2), (-2, 1)),
    "columns": (0, (2, 2), (1, 2)),
    "more axes than strides": (0, (2, 2), (1,)),
    "a size that is text": (0, ("2",), (1,)),
    "a thousand axes": (0, (1,) * 1000, (1,) * 1000),
    "a huge size": (1 << 2000, (1 << 39,) * 8, (1,) * 8),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_tensors_outside_of_their_bytes_are_refused(kind, tmp_path):
    file = write_persistent(tmp_path / "net.pkl", net(other=tensor(*SHAPES[kind])), "edm")
    assert "a tensor" in refusal(file, tmp_path)


def test_bytes_are_used_once(tmp_path):
    """Else one storage, or one tensor's bytes, is a million tensors in memory."""
    inner = Calls(torch.storage._load_from_bytes, storage())
    both = [Calls(torch._utils._rebuild_tensor_v2, inner, 0, (4,), (1,), False, {}) for _ in "ab"]
    assert "the same bytes" in refusal(planted(tmp_path, both), tmp_path)
    data = storage()
    both = [tensor(0, (4,), (1,), data=data) for _ in "ab"]
    assert "the same bytes" in refusal(planted(tmp_path, both), tmp_path)


def test_a_storage_that_is_shorter_than_it_says_is_refused(tmp_path):
    for data in (storage()[:-4], storage().replace(b"K\x04Nt", b"\x8a\x06\0\0\0\0\0\x01Nt")):
        assert data != storage()
        inside = tensor(0, (4,), (1,), data=data)
        assert "must be a pickle of EDM" in refusal(planted(tmp_path, inside), tmp_path)


def test_weights_of_a_gpu_come_to_the_cpu(tmp_path):
    data = storage().replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    assert b"cuda:0" in data
    inside = net(other=tensor(1, (3,), (1,), data=data))
    file = write_persistent(tmp_path / "net.pkl", inside, "edm2_scm")
    found = read(file, tmp_path).ema.state_dict()["other"]
    assert found.tolist() == [2.0, 3.0, 4.0]
    assert found.device.type == "cpu"


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
