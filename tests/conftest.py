# SPDX-License-Identifier: Apache-2.0
"""One thread for everything: two are slower on a loaded machine, and differ in rounding.

The order of files: a fault shall be seen early, and no long file shall start last.
"""

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before any test imports lightning

# isort: on
import fcntl
import logging
import os
import re
import shutil
from collections import Counter
from functools import cache
from pathlib import Path

import lightning.pytorch  # noqa: F401  its log handler keeps the stderr of its first import
import pytest
import torch
from torch import Tensor

from scm_lightning.saying import console

torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").propagate = True  # caplog listens at the root

TESTS = Path(__file__).parent
USUAL_TIMEOUT = 300


@pytest.fixture(autouse=True)
def width_of_this_test():
    """Let every test find the console as wide as its environment says."""
    console.cache_clear()


@pytest.fixture
def randn():
    """Seeded float64 noise: `randn(5, 3)`."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Folder of what all processes of pytest share: `once(name, make)` lets the first one make it.

    `make` is called with the empty folder; the other processes wait for it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def folder_of(name, make):
        folder, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@cache
def starts_processes(file: Path) -> bool:
    """Whether a file of tests does, or one of theirs that it imports."""
    imported = re.findall(r"^(?:from|import) (\w+)", file.read_text(), flags=re.MULTILINE)
    theirs = [place / f"{name}.py" for name in imported for place in (file.parent, TESTS)]
    return bool({"subprocess", "multiprocessing"} & set(imported)) or any(
        starts_processes(each) for each in theirs if each.is_file()
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The formulas first, then a file of each room in turn, then the files that start processes.

    Of these the one that may take the longest comes first.

    A file is as long as the largest timeout in it.
    """
    timeouts: dict[Path, float] = {}
    for item in items:
        marker = item.get_closest_marker("timeout")
        allowed = max(marker.args[0] if marker else 0, USUAL_TIMEOUT)
        timeouts[item.path] = max(allowed, timeouts.get(item.path, 0))
    places, rooms = {}, Counter()
    for file, timeout in timeouts.items():
        late = timeout > USUAL_TIMEOUT or (file.parent != TESTS and starts_processes(file))
        places[file] = (late, -timeout, file.parent.name != "core", rooms[file.parent, late])
        rooms[file.parent, late] += 1
    items.sort(key=lambda item: places[item.path])
