# SPDX-License-Identifier: Apache-2.0
"""Killed, interrupted, out of room, locked: one line each, and the same bytes in the end."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from painted import PaintedImages, content_of, recipe

from scm_lightning.preparation.captions import Captions
from scm_lightning.preparation.engine import prepare
from scm_lightning.preparation.space import needed_bytes
from scm_lightning.text import Words

fork = multiprocessing.get_context("fork")
"""Starts a process in no time, with everything imported."""
REFUSED, INTERRUPTED = 3, 4
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


class MortalImages(PaintedImages):
    """Of which one ends the process that loads it."""

    def load(self, number):
        if number == self.failing:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(number)


def _quietly(call: Callable[[], object], message: Path) -> None:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    code = 0
    try:
        call()
    except ValueError as error:
        message.write_text(str(error))
        code = REFUSED
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


def started(call, message):
    """A process that does the call."""
    # A shell starts what it puts into the background with this signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = fork.Process(target=_quietly, args=(call, message))
    process.start()
    return process


def workers_of(pid):
    """Processes that a process has started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition, seconds=200.0):
    """Wait until something holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it never came true"
        time.sleep(0.005)


def are_gone(pids):
    return all(not Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    ("num_kills", "num_images"),
    [(5, 200), pytest.param(20, 700, marks=pytest.mark.slow)],
)
def test_killed_at_any_moment_the_files_are_the_same(num_kills, num_images, tmp_path):
    """kill -9 at random moments of the work, with 0 to 2 workers."""
    source = PaintedImages(num_images, unreadable={17}, seconds=0.004)
    rng, folder = random.Random(0), tmp_path / "killed"

    def num_shards() -> int:
        return len(list(folder.glob("*.tar")))

    for number in range(num_kills):
        wanted = num_shards() + rng.randint(0, 4)
        process = started(
            lambda workers=number % 3: prepare(recipe(source), folder, workers, 1),
            tmp_path / "message",
        )
        wait_for(lambda limit=wanted: num_shards() >= limit)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (folder / "shards.json").exists()
    assert num_shards() > num_kills
    prepare(recipe(source), folder, 0, 1)
    prepare(recipe(source), tmp_path / "whole", 0, 1)
    assert content_of(folder) == content_of(tmp_path / "whole")


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_change_of_the_disk_the_files_are_the_same(stride, tmp_path):
    """Before each file that is made, moved or removed, one after the other, up to the last."""
    asked, codes = recipe(PaintedImages(12), heldout=2), []
    prepare(asked, tmp_path / "whole")

    def up_to_change(number: int) -> None:
        seen = iter(range(number))

        def count(event: str, args: tuple[object, ...]) -> None:
            made = event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT
            if (made or event in CHANGES) and next(seen, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        prepare(asked, tmp_path / str(number))

    while 0 not in codes:
        number = stride * len(codes)
        process = started(lambda now=number: up_to_change(now), tmp_path / "message")
        process.join()
        codes.append(process.exitcode)
        prepare(asked, tmp_path / str(number))
        assert content_of(tmp_path / str(number)) == content_of(tmp_path / "whole")
    assert len(codes) > 25 / stride
    assert set(codes[:-1]) == {-signal.SIGKILL}


def test_finished_shards_are_not_written_again(tmp_path):
    """A record without its whole shard does not count."""
    broken = PaintedImages(53, failing=52)
    with pytest.raises(ValueError, match=r"painted/52.png of painted images cannot be used: the d"):
        prepare(recipe(broken), tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("*.tar"))
    assert len(shards) > 2
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    shards[1].unlink()
    kept = {file: file.stat().st_ino for file in shards[2:]}
    done = prepare(recipe(PaintedImages(53)), tmp_path / "out")
    assert done.num_images == 53 - 8 * len(kept)
    assert kept == {file: file.stat().st_ino for file in kept}
    prepare(recipe(PaintedImages(53)), tmp_path / "whole")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_workers_end_with_a_killed_process(tmp_path):
    source = PaintedImages(53, seconds=1.0)  # not done before it is killed
    process = started(lambda: prepare(recipe(source), tmp_path / "out", 2), tmp_path / "message")
    wait_for(lambda: len(workers_of(process.pid)) == 2)
    workers = workers_of(process.pid)
    process.kill()
    process.join()
    wait_for(lambda: are_gone(workers))


def test_an_interrupt_ends_everything_and_leaves_nothing_half_written(tmp_path):
    """As the keyboard sends it: to the process and its workers."""
    source = PaintedImages(53, seconds=0.3)  # seconds more than this process may be held up
    process = started(lambda: prepare(recipe(source), tmp_path / "out", 2), tmp_path / "message")
    wait_for(lambda: list((tmp_path / "out").glob("*.tar")))
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    process.join(200)
    assert process.exitcode == INTERRUPTED
    assert are_gone(workers)
    assert not list((tmp_path / "out").rglob("*.part"))
    prepare(recipe(PaintedImages(53)), tmp_path / "out", 2)


def test_a_worker_that_is_killed_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a worker process was ended .* fewer workers than 2"):
        prepare(recipe(MortalImages(53, failing=30)), tmp_path / "out", 2)
    assert not list((tmp_path / "out").rglob("*.part"))
    prepare(recipe(MortalImages(53)), tmp_path / "out", 2)


def test_two_processes_do_not_write_one_folder(tmp_path):
    source = PaintedImages(53, seconds=1.0)  # not done before it is killed
    process = started(lambda: prepare(recipe(source), tmp_path / "out"), tmp_path / "message")
    wait_for((tmp_path / "out" / ".preparation" / "plan.json").exists)
    with pytest.raises(ValueError, match="is being prepared by another process"):
        prepare(recipe(source), tmp_path / "out")
    process.kill()
    process.join()
    prepare(recipe(PaintedImages(53)), tmp_path / "out")


def test_out_of_room_is_one_line_and_goes_on_later(tmp_path):
    """Files may grow to 15,000 bytes: a shard of 20,480 does not fit. The last of a split does."""

    def with_little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
        prepare(recipe(PaintedImages(53)), tmp_path / "out")

    process = started(with_little_room, tmp_path / "message")
    process.join()
    assert process.exitcode == REFUSED
    message = (tmp_path / "message").read_text()
    assert "cannot be written: File too large" in message
    assert "room for about 0.24 MB in all" in message
    assert "run the same command again" in message
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".preparation"]
    prepare(recipe(PaintedImages(53)), tmp_path / "out")
    prepare(recipe(PaintedImages(53)), tmp_path / "whole")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1e5, 0, 1e5))
    with pytest.raises(ValueError, match=r"needs about 0.24 MB more, and 0.10 MB are free"):
        prepare(recipe(PaintedImages(53)), tmp_path / "out")
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.parametrize("num_images", [53, 54, 61])
def test_the_size_of_shards_is_known_before(num_images, tmp_path):
    source = PaintedImages(num_images)
    captions = Captions(["größe"] * num_images, [""] * num_images, Words(2048))
    for number, texts in enumerate((None, captions)):
        asked = recipe(source, captions=texts)
        index = prepare(asked, tmp_path / str(number)).index
        size = sum(shard.num_bytes for shard in index.shards)
        assert size < needed_bytes(asked.plan().shards, asked) < 2 * size


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("hello")
    with pytest.raises(ValueError, match="file/out cannot be written: Not a directory"):
        prepare(recipe(PaintedImages(53)), tmp_path / "file" / "out")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "out"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match="out cannot be written: Permission denied"):
        prepare(recipe(PaintedImages(53)), tmp_path / "out")


def test_unreadable_images_are_all_counted_before_the_error(tmp_path):
    """Twelve of them, ten named; accepted, they are left out without work."""
    source = PaintedImages(53, unreadable=range(20, 32))
    with pytest.raises(ValueError, match="at most 11 images may be unreadable, got 12") as caught:
        prepare(recipe(source), tmp_path / "out", 2, max_unreadable=11)
    assert str(caught.value).count("too faint") == 10
    assert "and 2 others. With max_unreadable 12 the same command" in str(caught.value)
    assert not (tmp_path / "out" / "shards.json").exists()
    done = prepare(recipe(source), tmp_path / "out", max_unreadable=12)
    assert (done.num_images, done.index.num_unreadable) == (0, 12)
    assert sum(split.num_samples for split in done.index.splits.values()) == 41
    assert sorted(done.unreadable) == [f"painted/{n}.png: too faint" for n in range(20, 32)]


def test_a_source_that_cannot_be_read_at_all_is_refused(tmp_path):
    """Also with leave to leave everything out; shards without samples are no files."""
    with pytest.raises(ValueError, match="must be readable, got 0 and 0 of painted images"):
        prepare(recipe(PaintedImages(53, range(53))), tmp_path / "out", max_unreadable=99)
    assert not list(tmp_path.rglob("*.tar"))
