# SPDX-License-Identifier: Apache-2.0
"""A pipe in the place of a file of weights, in which nobody writes: named, and not waited for."""

import os

import pytest

from scm_lightning.metrics.fidelity import read_weights
from scm_lightning.storage import Checkpoint, Export
from scm_lightning.storage.parts import MARKER, REST
from scm_lightning.storage.snapshot import read_snapshots


@pytest.fixture
def pipe(tmp_path):
    file = tmp_path / "x.safetensors"
    os.mkfifo(file)
    return file


@pytest.mark.parametrize(
    "read",
    [
        lambda file: Checkpoint(file).read(),
        lambda file: Checkpoint(file).check(),
        Export.read,
        read_weights,
    ],
)
def test_a_pipe_is_refused(read, pipe):
    with pytest.raises(ValueError, match=r"got a pipe|there is no file"):
        read(pipe)


def test_a_pipe_among_snapshots_is_refused(pipe):
    with pytest.raises(ValueError, match="must be a regular file, got a pipe"):
        read_snapshots(pipe.parent)


def test_a_pipe_is_at_no_step(pipe):
    assert Checkpoint(pipe).step is None
    assert not Checkpoint(pipe).exists()


@pytest.mark.parametrize("name", [MARKER, REST])
def test_a_folder_with_a_pipe_is_a_damaged_checkpoint(name, tmp_path):
    """A large marker is as good as none, too."""
    (tmp_path / MARKER).write_text("{}" + " " * 2**24)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert Checkpoint(tmp_path).step is None
    with pytest.raises(ValueError, match=r"is damaged: complete\.json does not fit"):
        Checkpoint(tmp_path).check()
