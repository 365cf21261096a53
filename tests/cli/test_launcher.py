# SPDX-License-Identifier: Apache-2.0
"""What a command has launched ends with it, even if it is killed; what a shell has, does not."""

import os
import signal
import subprocess
import sys
import time

import pytest

LEAF = """
import time
from scm_lightning.cli import launcher
launcher.GRACE_SECONDS = 0.1
launcher.follow_launcher()
print("ready", flush=True)
time.sleep(600)
"""
MIDDLE = """
import subprocess, sys, time
from scm_lightning.cli.launcher import follow_launcher
{first}
leaf = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(leaf.pid, flush=True)
time.sleep(600)
"""


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("first", "ends"), [("follow_launcher()", True), ("", False)])
def test_a_launched_process_ends_with_its_launcher(first, ends):
    command = [sys.executable, "-c", MIDDLE.format(first=first), LEAF]
    middle = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    leaf = int(middle.stdout.readline())
    assert middle.stdout.readline() == "ready\n"
    middle.kill()
    middle.wait()
    # What is to happen may take long on a loaded machine; what is not to is not waited for.
    end = time.monotonic() + (200.0 if ends else 2.5)
    while is_running(leaf) and time.monotonic() < end:
        time.sleep(0.1)
    assert is_running(leaf) != ends
    if not ends:
        os.kill(leaf, signal.SIGKILL)
