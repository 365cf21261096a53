# SPDX-License-Identifier: Apache-2.0
"""Folders of parts: complete or not there, whoever is killed when; damage is found."""

import os
import random
import shutil
import signal
import subprocess

import pytest
import torch
from processes import NUM_PROCESSES, in_processes
from torch import distributed
from torch.distributed.tensor import Shard, distribute_tensor

from scm_lightning.storage import Checkpoint, History


def numbered(step):
    return f"{step:07d}.ckpt"


def unnumbered(step):
    return f"last-{step:07d}.ckpt"


def content(step):
    """What a run has after so many steps; a weight of one row leaves a process without a part."""
    return {
        "global_step": step,
        "state_dict": {"a.b": torch.arange(15.0).view(5, 3) + step, "c": torch.full((1, 7), step)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.arange(9.0) - step, "step": step}}}],
        "scm_lightning": {"module": "diffusion"},
    }


def sharded(tree, mesh):
    """The same with its weights and moments cut by rows."""
    cut = {name: distribute_tensor(x, mesh, [Shard(0)]) for name, x in tree["state_dict"].items()}
    moments = tree["optimizer_states"][0]["state"][0]
    moments["exp_avg"] = distribute_tensor(moments["exp_avg"], mesh, [Shard(0)])
    return {**tree, "state_dict": cut}


def save(folder, step, mesh, name=numbered):
    folder.mkdir(exist_ok=True)
    Checkpoint(folder / name(step)).write(sharded(content(step), mesh), in_parts=True)
    if distributed.get_rank() == 0:
        History(folder, in_parts=True).name(step, name is numbered)
    distributed.barrier()


def assert_holds(found, step):
    expected = content(step)
    for name, x in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], x)
    moments = expected["optimizer_states"][0]["state"][0]
    assert torch.equal(found["optimizer_states"][0]["state"][0]["exp_avg"], moments["exp_avg"])
    assert found["optimizer_states"][0]["state"][0]["step"] == step
    assert found["scm_lightning"] == expected["scm_lightning"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run that saved steps 4 and 8, and after them 9, which is due to no number."""
    folder = tmp_path_factory.mktemp("parts") / "checkpoints"

    def run(rank, mesh):
        save(folder, 4, mesh)
        save(folder, 8, mesh)
        save(folder, 9, mesh, unnumbered)

    assert in_processes(run)
    return folder


def copy_of(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints", symlinks=True)


def test_what_is_written_is_read(saved, tmp_path):
    """Whole in one process, and sharded over three, one of which has nothing of some weights."""
    for step, name in ((4, numbered(4)), (8, numbered(8)), (9, "last.ckpt")):
        assert_holds(Checkpoint(saved / name).read(), step)
        assert Checkpoint(saved / name).step == step

    def read(rank, mesh):
        state = Checkpoint(saved / "last.ckpt").read(mesh)["state_dict"]
        torch.save({name: x.full_tensor() for name, x in state.items()}, tmp_path / f"{rank}.pt")
        rows = {name: len(x.to_local()) for name, x in state.items()}
        assert rows == {"a.b": 1 if rank == 2 else 2, "c": int(rank == 0)}

    assert in_processes(read, 3)
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, x in content(9)["state_dict"].items():
            assert torch.equal(found[name], x)


def test_last_is_a_link_and_what_has_no_number_goes(saved, tmp_path):
    folder = copy_of(saved, tmp_path)
    names = ["0000004.ckpt", "0000008.ckpt", "last-0000009.ckpt", "last.ckpt"]
    assert sorted(each.name for each in folder.iterdir()) == names
    assert os.readlink(folder / "last.ckpt") == "last-0000009.ckpt"
    History(folder, in_parts=True).name(8, is_numbered=True)
    assert sorted(each.name for each in folder.iterdir()) == [*names[:2], "last.ckpt"]
    assert [step for step, _ in History(folder).steps()] == [8, 8, 4]


def test_a_copy_that_followed_the_link_is_one_too(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    assert not (folder / "last.ckpt").is_symlink()
    assert History(folder).newest().step == 9
    History(folder, in_parts=True).name(8, is_numbered=True)
    assert (folder / "last.ckpt").is_symlink()


def test_later_ones_are_set_aside(saved, tmp_path):
    """The link with what it leads to; a link that leads nowhere is none."""
    folder = copy_of(saved, tmp_path)
    aside = History(folder).set_aside_later(4)
    names = ["0000008.ckpt", "last-0000009.ckpt", "last.ckpt"]
    assert sorted(each.name for each in aside.iterdir()) == names
    assert_holds(Checkpoint(aside / "last.ckpt").read(), 9)
    (folder / "last.ckpt").symlink_to("0000008.ckpt")
    assert History(folder).newest().file == folder / "0000004.ckpt"
    History(folder, in_parts=True).name(4, is_numbered=True)
    assert History(folder).newest().step == Checkpoint(folder / "last.ckpt").step == 4


def test_files_and_folders_in_turn(saved, tmp_path):
    """A run goes on in the other way: a file takes the place of the link, a link that of a file."""
    folder = copy_of(saved, tmp_path)
    Checkpoint(folder / "last.ckpt").write(content(12))
    History(folder).name(12, is_numbered=True)
    assert_holds(Checkpoint(History(folder).newest().file).read(), 12)
    assert_holds(Checkpoint(folder / numbered(8)).read(), 8)
    History(folder, in_parts=True).name(8, is_numbered=True)
    assert Checkpoint(folder / "last.ckpt").step == 8


def damages(folder, draw):
    """Ways to damage a checkpoint: a function of a file, and the file."""
    files = sorted(each.name for each in folder.iterdir())
    for number in range(100):
        yield "flip", files[number % len(files)], draw.random()
    for number in range(20):
        yield "cut", files[number % len(files)], draw.random()
    for name in files:
        yield "remove", name, 0.0
    yield "extra", "shard-00003-model-00001-of-00001.safetensors", 0.0
    yield "swap", "", 0.0


def damage(folder, kind, name, place):
    file = folder / name
    if kind == "flip":
        content = bytearray(file.read_bytes())
        bit = int(place * 8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[: int(place * file.stat().st_size)])
    elif kind == "remove":
        file.unlink()
    elif kind == "extra":
        shutil.copy(folder / "shard-00001-model-00001-of-00001.safetensors", file)
    else:  # parts of two checkpoints, each whole by itself
        for part in folder.glob("*.safetensors"):
            shutil.copy(folder.with_name(numbered(8)) / part.name, part)


def test_damaged_folders_are_passed_over(saved, tmp_path):
    """A hundred flipped bits, twenty cuts, each file missing, one too many, and mixed folders."""
    newest = "last-0000009.ckpt"
    draw, number = random.Random(0), 0
    for number, (kind, name, place) in enumerate(damages(saved / newest, draw)):
        folder = copy_of(saved, tmp_path / str(number))
        damage(folder / newest, kind, name, place)
        found = History(folder).newest()
        assert (found.file, found.step) == (folder / "0000008.ckpt", 8), (kind, name)
        assert len(found.damaged) == 2  # by its name and by the link
        with pytest.raises(ValueError, match="is damaged"):
            Checkpoint(folder / newest).read()
        shutil.rmtree(folder)
    assert number >= 125


def killed_while_saving(folder, draw):
    """Two processes that save ten times; one is killed before a call, or at a moment."""
    call = draw.choice(["replace", "fsync", "symlink", "mkdir", "time"])
    victim, number = draw.randrange(NUM_PROCESSES), draw.randint(1, 12)

    def run(rank, mesh):
        if rank == victim:
            if call == "time":
                signal.signal(signal.SIGALRM, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.01, 0.25))
            else:
                real, left = getattr(os, call), [number]

                def counted(*args, **kwargs):
                    left[0] -= 1
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*args, **kwargs)

                setattr(os, call, counted)
        if rank == 0:
            History(folder).sweep()
        start = History(folder).newest().step
        for step in range(start + 1, start + 11):
            save(folder, step, mesh, numbered if step % 4 == 0 else unnumbered)

    return not in_processes(run)


def kills(tmp_path, num_kills):
    folder, draw, count, last = tmp_path / "checkpoints", random.Random(2), 0, 0
    while count < num_kills:
        count += killed_while_saving(folder, draw)
        found = History(folder).newest()
        assert not found.damaged
        assert found.step >= last
        last = found.step
        if found.file is not None:
            assert_holds(Checkpoint(found.file).read(), last)
    History(folder).sweep()
    names = [each.name for each in folder.iterdir()]
    assert all(name.endswith(".ckpt") for name in names)
    assert not [name for name in names if Checkpoint(folder / name).step is None]
    print(f"{count} kills of one of {NUM_PROCESSES} processes that save: all folders load")
    return last


def test_ten_kills_of_processes_that_save(tmp_path):
    assert kills(tmp_path, 10) > 10


@pytest.mark.slow
def test_a_hundred_kills_of_processes_that_save(tmp_path):
    assert kills(tmp_path, 100) > 100


def test_a_full_disk_leaves_what_was_there(saved, tmp_path):
    """Of one process or of both; the error is the same in all, and names what is needed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", disk], check=True)
    try:
        folder = disk / "run" / "checkpoints"
        folder.mkdir(parents=True)
        shutil.copytree(saved / numbered(8), folder / numbered(8))

        def run(rank, mesh):
            tree = content(12)
            tree["state_dict"]["a.b"] = torch.zeros(50_000, 1)
            with pytest.raises(OSError, match="could not be written: ") as caught:
                Checkpoint(folder / numbered(12)).write(sharded(tree, mesh), in_parts=True)
            (tmp_path / f"{rank}.txt").write_text(str(caught.value))

        assert in_processes(run)
        first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
        assert first == second
        assert "\n" not in first
        assert "No space left on device" in first
        assert "200,092 bytes are needed" in first
        assert [each.name for each in folder.iterdir()] == [numbered(8)]
        Checkpoint(folder / numbered(8)).check()
    finally:
        subprocess.run(["umount", disk], check=True)
