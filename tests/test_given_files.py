# SPDX-License-Identifier: Apache-2.0
"""Paths mean what is typed; only regular files are read, and within bounds."""

import io
import os
import pickle
import struct
from pathlib import Path

import pytest

from scm_lightning.given_files import (
    PICKLE,
    SAFETENSORS,
    given_path,
    meant,
    meant_path,
    open_regular,
    read_regular,
    what_it_is,
)


def test_a_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert given_path("~/runs/p1") == f"{tmp_path}/runs/p1"
    assert given_path("runs/~old") == "runs/~old"
    assert given_path(Path("runs")) == "runs"
    for place in ("https://host/a~b", "pipe:cat $DATA/{name} | head -c 9"):
        assert given_path(place) == place  # a shell comes to what is a command


@pytest.mark.parametrize("path", ["$HOME/runs", "runs/${NAME}/a", "a$b"])
def test_a_variable_that_no_shell_has_replaced_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"must not hold the variable \$"):
        given_path(path)
    assert given_path("cost$/5$") == "cost$/5$"


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="no such user"):
        given_path("~nobody_of_that_name/runs")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe, file, link = tmp_path / "pipe", tmp_path / "file", tmp_path / "link"
    os.mkfifo(pipe)
    file.write_bytes(b"12345")
    link.symlink_to(file)
    for other, kind in ((pipe, "a pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(ValueError, match=f"must be a regular file, got {kind}"):
            open_regular(other)
    assert read_regular(link, 5) == b"12345"
    with pytest.raises(ValueError, match="at most 4 bytes"):
        read_regular(file, 4)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "missing", 5)


def test_the_nearest_name_is_what_was_meant() -> None:
    assert meant("max_step", ["max_time", "max_steps"]) == "; did you mean max_steps?"
    assert meant("nonsense", ["max_time", "max_steps"]) == ""


def test_the_nearest_path_is_there(tmp_path: Path) -> None:
    """At any depth, and only if all of it is there."""
    (tmp_path / "digits" / "checkpoints").mkdir(parents=True)
    (tmp_path / "digits" / "checkpoints" / "last.ckpt").touch()
    found = f"; did you mean {tmp_path}/digits/checkpoints/last.ckpt?"
    assert meant_path(tmp_path / "digit" / "checkpoints" / "last.ckpt") == found
    assert meant_path(tmp_path / "digits" / "checkpoints" / "lst.ckpt") == found
    assert meant_path(tmp_path / "digit" / "nowhere" / "last.ckpt") == ""
    assert meant_path(tmp_path / "digits") == ""


@pytest.mark.parametrize("length", [60, 15392, 0x6120, 0x4B50, 0x0480])
def test_a_header_is_told_from_text_by_its_length(length: int) -> None:
    """Bytes of the length of a safetensors header: "<", " <", " a", "PK", those of a pickle."""
    assert what_it_is(io.BytesIO(struct.pack("<Q", length) + b'{"a":')) == SAFETENSORS
    assert what_it_is(io.BytesIO(pickle.dumps("x" * length, 4))) == PICKLE
