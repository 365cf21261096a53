# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a run replaces while somebody reads them."""

import os
import shutil
import time

import torch
from processes import beside, in_processes
from test_parts import content, save
from torch import distributed

from scm_lightning.callbacks.checkpoint_io import WholeFiles
from scm_lightning.storage import Checkpoint, History, SavedRun

READS = 300


def of_step(step):
    """Weights that are all the step, of a size that changes too."""
    return {
        "global_step": step,
        "state_dict": {f"w{n}": torch.full((9000 + step % 5,), float(step)) for n in range(3)},
        "scm_lightning": {"module": "diffusion", "sigma_data": 0.7},
        "pytorch-lightning_version": "2.6.6",
    }


def test_a_file_that_is_replaced_is_read_whole(tmp_path):
    """Old or new, never parts of both, and never as damaged; also what was only mapped."""
    file = tmp_path / "last.ckpt"
    Checkpoint(file).write(of_step(0))

    def train(is_there):
        for step in range(1, 1 << 30):
            Checkpoint(file).write(of_step(step))
            is_there()

    mapped = SavedRun.read(file).content
    with beside(train):
        for _ in range(READS):
            for found in (SavedRun.read(file).content, Checkpoint(file).read()):
                assert all((x == found["global_step"]).all() for x in found["state_dict"].values())
            Checkpoint(file).check()
            assert Checkpoint(file).step is not None
    assert all((x == 0).all() for x in mapped["state_dict"].values())


def test_a_folder_that_is_replaced_is_read_whole(tmp_path):
    """The link names another folder, and the one that it named is removed."""
    folder = tmp_path / "checkpoints"
    assert in_processes(lambda rank, mesh: [save(folder, step, mesh) for step in (4, 8)])

    def train(is_there):
        for step in range(9, 1 << 30):
            shutil.copytree(folder / f"{(4, 8)[step % 2]:07d}.ckpt", folder / "half.part")
            os.replace(folder / "half.part", folder / f"last-{step:07d}.ckpt")
            History(folder, in_parts=True).name(step, is_numbered=False)
            is_there()
            time.sleep(0.01)  # or every reading would begin several times

    with beside(train):
        for _ in range(READS):
            found = Checkpoint(folder / "last.ckpt").read()
            expected = content(found["global_step"])["state_dict"]
            assert all(torch.equal(found["state_dict"][name], x) for name, x in expected.items())


def test_all_processes_load_the_same(tmp_path, monkeypatch):
    """The file is replaced after the first process has read it, and before the second does."""
    file = tmp_path / "last.ckpt"
    Checkpoint(file).write(of_step(4))

    def read(rank, mesh):
        if rank == 1:
            distributed.barrier()
        original = Checkpoint.read

        def load(checkpoint):
            found = original(checkpoint)
            monkeypatch.setattr(Checkpoint, "read", original)
            if rank == 0:
                Checkpoint(file).write(of_step(8))
                distributed.barrier()
            return found

        monkeypatch.setattr(Checkpoint, "read", load)
        assert WholeFiles().load_checkpoint(file)["global_step"] == 8

    assert in_processes(read)
