# SPDX-License-Identifier: Apache-2.0
"""Reads damaged files in processes of their own, and notes everything but reading or refusing.

A finding is: another error than ValueError or OSError; a message that is not one printable line of
bounded length as `scm` would print it; content that a checksum should have refused; more than
`MAX_BYTES` of memory or `MAX_SECONDS` of the processor for one file; a process that dies; a process
that starts another program, connects, or writes a file outside of its folder.
"""

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz_mutations import Mutate

from scm_lightning.cli.failures import one_line

MAX_BYTES = 1 << 30
MAX_SECONDS = 5.0
MAX_LINE = 2100
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Args:
        name: of the kind.
        originals: content by name; each is damaged in turn.
        read: reads the file at a path as the package does; returns what it holds, to compare.
        mutate: the damage.
        count: damaged files in the long run.
        beside: files that stay whole, by path from the folder of the file.
        mend: puts right what would stop the damage early, for example a checksum of ours.
        is_covered: whether a checksum of ours covers the file, so that what is read is as it was.
    """

    name: str
    originals: dict[str, bytes]
    read: Callable[[Path], Any]
    mutate: Mutate
    count: int
    beside: dict[str, bytes] = field(default_factory=dict)
    mend: Callable[[bytes], bytes] = bytes
    is_covered: bool = False


@dataclass
class Account:
    """How the files of a kind ended."""

    kind: str
    num_read: int = 0
    num_refused: int = 0
    seconds: float = 0.0
    findings: list[str] | None = None


def damaged_file(kind: Kind, number: int) -> tuple[str, bytes]:
    """Name of the original, and the damaged content; the same for the same number."""
    name = list(kind.originals)[number % len(kind.originals)]
    content = kind.mutate(kind.originals[name], Random(f"{kind.name} {number}"))
    return name, kind.mend(content)


def fuzz(kind: Kind, numbers: range, folder: Path) -> Account:
    """Read damaged files.

    Args:
        kind: of which kind.
        numbers: which of the endless many of that kind.
        folder: may be written to; is empty again afterwards.
    """
    account, start, left = Account(kind.name, findings=[]), time.monotonic(), list(numbers)
    assert account.findings is not None
    while left:
        at = None
        for line in _in_a_process(kind, left, folder):
            if "at" in line:
                at = line["at"]
                continue
            account.num_read += line["end"] == "read"
            account.num_refused += line["end"] == "refused"
            account.findings += [f"{kind.name} {at}: {each}" for each in line["findings"]]
            left, at = left[left.index(at) + 1 :], None
        if at is not None:  # it did not come to an end
            account.findings.append(f"{kind.name} {at}: the process died or hung")
            left = left[left.index(at) + 1 :]
        elif left:
            account.findings.append(f"{kind.name}: the process ended before {left[0]}")
            break
    account.seconds = time.monotonic() - start
    return account


def _in_a_process(kind: Kind, numbers: list[int], folder: Path) -> Iterator[dict[str, Any]]:
    """Fork, and yield what the process says: the number it is at, and how that ended."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        try:
            with os.fdopen(writable, "w", buffering=1) as told:

                def tell(said: dict[str, Any]) -> None:
                    told.write(json.dumps(said) + "\n")

                try:
                    _read_all(kind, numbers, folder, tell)
                except BaseException as error:  # of the fuzzing itself
                    tell({"end": "broken", "findings": [f"{error!r} {_where(error)}"]})
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable) as told:
        for line in told:
            yield json.loads(line)
    os.waitpid(child, 0)


def _read_all(kind: Kind, numbers: list[int], folder: Path, tell: Callable[[Any], Any]) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    sys.stdout = sys.stderr = os.fdopen(os.dup(1), "w")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills a process that hangs
    watched = _Watch(folder)
    covered = kind.originals if kind.is_covered else {}
    wanted = {
        name: repr(kind.read(_placed(kind, folder, name, each))) for name, each in covered.items()
    }
    for number in numbers:
        tell({"at": number})
        signal.alarm(60)
        name, content = damaged_file(kind, number)
        end, findings = _read_one(kind, name, content, folder, watched)
        if end == "read" and name in wanted and wanted[name] != watched.content:
            findings.append("it was read, and is not what it was")
        tell({"end": end, "findings": findings})


def _placed(kind: Kind, folder: Path, name: str, content: bytes) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for other, whole in {**kind.originals, **kind.beside, name: content}.items():
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes(whole)
    return folder / name


class _Watch:
    """What the process does besides reading, from its audit events; they cannot be unhooked."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.seen: list[str] = []
        self.content = ""
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if event in STARTS:
            self.seen.append(f"{event} {args!r:.200}")
        elif event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR):
            allowed = (self.folder, os.devnull, "/proc/self/clear_refs")
            if not os.path.abspath(args[0]).startswith(allowed):
                self.seen.append(f"writes {args[0]}")


def _read_one(
    kind: Kind, name: str, content: bytes, folder: Path, watched: _Watch
) -> tuple[str, list[str]]:
    """How one file ends, and what is wrong with that."""
    file = _placed(kind, folder, name, content)
    findings: list[str] = []
    limit = _status("VmSize") + 8 * MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the most so far, starts anew
    watched.seen.clear()
    before = _status("VmRSS")
    start, end = time.process_time(), "read"
    try:
        watched.content = repr(kind.read(file))
    except (ValueError, OSError) as error:
        end = "refused"
        line = one_line(str(error))
        if not line or not line.isprintable() or len(line) > MAX_LINE:
            findings.append(f"a line of {len(line)} letters, {line!r:.200}")
    except BaseException as error:
        end = "error"
        findings.append(f"{type(error).__name__}: {error!s:.200} {_where(error)}")
    if (seconds := time.process_time() - start) > MAX_SECONDS:
        findings.append(f"{seconds:.1f} s")
    if (more := _status("VmHWM") - before) > MAX_BYTES:
        findings.append(f"{more / 2**20:.0f} MB")
    findings += watched.seen
    return end, findings


def _where(error: BaseException) -> str:
    at = error.__traceback__
    places = []
    while at is not None:
        code = at.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{at.tb_lineno}")
        at = at.tb_next
    return " ".join(places[-5:])


def _status(name: str) -> int:
    """A size of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
