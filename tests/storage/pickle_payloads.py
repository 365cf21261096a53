# SPDX-License-Identifier: Apache-2.0
"""Parts of pickles that ask for more than weights, and the check of how they are refused."""

import io
import sys
from pathlib import Path

import pytest
import torch
from storage.persistent_replica import Node, write_persistent

from scm_lightning.storage.persistent_pickle import PersistentFile, read_persistent

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


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"
