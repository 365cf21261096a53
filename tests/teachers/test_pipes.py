# SPDX-License-Identifier: Apache-2.0
"""A pipe in the place of a file of weights, in which nobody writes: named, and not waited for."""

import os

import pytest

from scm_lightning.metrics.fidelity import read_weights
from scm_lightning.teachers.checkpoint_files import check_whole, step_of
from scm_lightning.teachers.checkpoint_parts import (
    MARKER,
    REST,
    check_checkpoint,
    checkpoint_step,
    is_checkpoint,
    load_checkpoint,
)
from scm_lightning.teachers.exports import read_export
from scm_lightning.teachers.snapshots import read_snapshots


@pytest.fixture
def pipe(tmp_path):
    file = tmp_path / "x.safetensors"
    os.mkfifo(file)
    return file


@pytest.mark.parametrize(
    "read", [check_whole, load_checkpoint, check_checkpoint, read_export, read_weights]
)
def test_a_pipe_is_refused(read, pipe):
    with pytest.raises(ValueError, match=r"got a pipe|there is no file"):
        read(pipe)


def test_a_pipe_among_snapshots_is_refused(pipe):
    with pytest.raises(ValueError, match="must be a regular file, got a pipe"):
        read_snapshots(pipe.parent)


def test_a_pipe_is_at_no_step(pipe):
    assert step_of(pipe) is None
    assert not is_checkpoint(pipe)


@pytest.mark.parametrize("name", [MARKER, REST])
def test_a_folder_with_a_pipe_is_a_damaged_checkpoint(name, tmp_path):
    """A large marker is as good as none, too."""
    (tmp_path / MARKER).write_text("{}" + " " * 2**24)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert checkpoint_step(tmp_path) is None
    with pytest.raises(ValueError, match=r"is damaged: complete\.json does not fit"):
        check_checkpoint(tmp_path)
