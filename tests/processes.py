# SPDX-License-Identifier: Apache-2.0
"""Forks of a test's process: one beside it, or several that form a group."""

import os
import signal
import socket
from contextlib import contextmanager

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

NUM_PROCESSES = 2


@contextmanager
def beside(action):
    """Another process, while it does something; it is killed."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action(lambda: os.write(writable, b"."))
        finally:
            os._exit(1)
    os.read(readable, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(readable)
        os.close(writable)


def in_processes(act, num_processes=NUM_PROCESSES):
    """Let forks of this process do something, each with its rank and a mesh of all.

    If one does not live to the end the others are killed, as a job's launcher does it.

    Returns:
        Whether all did it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(num_processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                distributed.init_process_group(
                    "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_processes
                )
                act(rank, init_device_mesh("cpu", (num_processes,)))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    is_done = True
    for _ in children:
        ended, status = os.wait()
        if status and is_done:
            is_done = False
            for each in children:
                if each != ended:
                    os.kill(each, signal.SIGKILL)
    return is_done
