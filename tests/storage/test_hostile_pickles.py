# SPDX-License-Identifier: Apache-2.0
"""Files that would harm who opens them as networks: refused in one line, and nothing has run.

Every payload would make the canary, a file, if it were run.
"""

import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from storage.persistent_replica import write_persistent
from storage.pickle_payloads import (
    CANARY,
    Calls,
    name,
    net,
    planted,
    read,
    refusal,
    storage,
    tensor,
    text,
)

from scm_lightning.storage.persistent_pickle import MAKERS


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


@pytest.mark.parametrize(
    ("function", "said"), CALLS, ids=lambda each: getattr(each, "__name__", "")
)
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
