# SPDX-License-Identifier: Apache-2.0
"""Checkpoints to which every process writes its own part: the same content as in one file."""

import pytest
import torch
from distributed_program import MAPPED, MAPPED_STOPS
from distributed_runs import NUM_STEPS, Place
from safetensors.torch import load_file
from test_distributed import assert_same_checkpoint, records, start, tensors

from scm_lightning.cli import main
from scm_lightning.storage import Checkpoint, SavedRun

FIRST, SECOND = MAPPED_STOPS


@pytest.fixture(scope="module")
def two(alone):
    """The folder of two processes, whose checkpoints are folders; four then went on from them."""
    start("fsdp2_sharded", alone.parent, "parts_of_two", "parts_of_four")
    return alone.parent / "fsdp2_sharded2"


def test_every_process_writes_its_part(two):
    """Half of every weight and moment each, and once what is not sharded."""
    folder = two / "mapped" / "last.ckpt"
    assert folder.is_symlink()
    assert Checkpoint(folder).step == FIRST
    parts = [load_file(each) for each in sorted(folder.glob("*.safetensors"))]
    assert len(parts) == 2
    rest, whole = (
        tensors(Checkpoint(folder / "rest.ckpt").read()),
        tensors(SavedRun.read(folder).content),
    )
    sharded = {name for name, x in rest.items() if x.is_meta}
    num_all = sum(whole[name].numel() for name in sharded)
    shares = [sum(x.numel() for x in part.values()) / num_all for part in parts]
    assert sum(shares) == pytest.approx(1.0)
    assert max(shares) < 0.7
    assert any(name.startswith(".optimizer_states") for name in sharded)
    assert not any(x.is_meta for x in whole.values())


def test_four_processes_and_one_go_on_from_two(alone, two, capsys):
    """What they load is to the bit what was saved; losses are those of the unbroken run."""
    (expected,) = records(alone, "mapped", NUM_STEPS)
    four = two.with_name("fsdp2_sharded4")
    found = [
        records(each, "mapped", stop)[0]["losses"] for each, stop in ((two, FIRST), (four, SECOND))
    ]
    assert found[0] + found[1] == pytest.approx(expected["losses"][:SECOND], rel=1e-6)
    begun = two / "mapped" / "last.ckpt"
    assert_same_checkpoint(four / "mapped.loaded.ckpt", begun, 0)
    for folder, stop in ((two, FIRST), (four, SECOND)):
        ckpt = folder / "mapped" / "last.ckpt"
        Place(folder).run(MAPPED, stop, name="back", ckpt=ckpt, mapped=True)
        (rest,) = records(folder, "back", NUM_STEPS)
        assert rest["losses"] == pytest.approx(expected["losses"][stop:], rel=1e-6)
        assert_same_checkpoint(folder / "back.loaded.ckpt", ckpt, 0)
        unbroken = alone / "mapped" / "last.ckpt"
        assert_same_checkpoint(folder / "back" / "last.ckpt", unbroken, 1e-6)
    assert "has those of 4 processes, this run has 1 on cpu" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_run_goes_on_from_a_file(alone, two):
    """Lightning rounds float64 weights to float32 when it restores them."""
    assert_same_checkpoint(two / "taken_over.4.ckpt", alone / "scd_dual.4.ckpt", 1e-6)


def test_a_folder_is_exported_as_a_file_is(alone, two, tmp_path):
    exported = []
    for folder in (alone, two):
        out = tmp_path / f"{folder.name}.safetensors"
        checkpoint = folder / "scd_dual.4.ckpt" if folder == alone else folder / "taken_over.4.ckpt"
        main(["export", f"--checkpoint={checkpoint}", f"--out={out}", "--ema=0.2"])
        exported.append(load_file(out))
    one, other = exported
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-6)
