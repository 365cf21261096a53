# SPDX-License-Identifier: Apache-2.0
"""Runs of older versions, continued where the bits do not depend on the processor.

By default they do: torch chooses its kernels by what the processor can (AVX2, AVX-512), and MKL its
own. `ENVIRONMENT` asks both for the plainest code, which every x86 processor runs alike; whether a
machine does is seen from `probe`, which is plain torch and calls nothing of this package.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "default",  # torch's kernels without AVX
    "MKL_CBWR": "COMPATIBLE",  # MKL's matrix products and functions: one code path everywhere
    "OMP_NUM_THREADS": "1",  # sums are not split
    "PYTHONPATH": str(ROOT),  # this code, whatever else is installed
}


def run_python(*words: object, folder: Path = ROOT) -> str:
    """Run this Python in `ENVIRONMENT`.

    Args:
        words: its arguments.
        folder: where, so that a run's paths can be relative.

    Returns:
        What it printed.
    """
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, **ENVIRONMENT},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def weights_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 of weights: for each by its name, in sorted order, name, type, shape and bytes."""
    sha256 = hashlib.sha256()
    for name in sorted(state):
        x = state[name].contiguous()
        sha256.update(f"{name} {x.dtype} {tuple(x.shape)} ".encode() + x.numpy().tobytes())
    return sha256.hexdigest()


def probe() -> dict[str, str]:
    """Hashes of a training in plain torch of the kind and size of the runs.

    Returns:
        `draws`, of random numbers alone, which another build of torch may draw in another way;
        `arithmetic`, of all that the processor rounds.
    """
    torch.manual_seed(0)
    draws = {
        "uniform": torch.rand(64),
        "places": functional.dropout(torch.ones(64)),
        "order": torch.randperm(40),
        "normal": (1000 * torch.randn(8, 64)).round(),  # whatever the last bits are
    }
    network = nn.Sequential(nn.Linear(64, 16), nn.SiLU(), nn.Dropout(0.1), nn.Linear(16, 64))
    optimizer = torch.optim.RAdam(network.parameters(), lr=0.01)
    for _ in range(20):
        t = (torch.randn(8, 1) * 1.8 - 1.2).exp().atan()
        x, z = torch.randn(8, 64), torch.randn(8, 64)
        turned = t.cos() * x + t.sin() * z
        turned = turned / (1e-5 + turned.square().mean(1, keepdim=True)).sqrt()
        error = network(turned) - x
        loss = (error / (torch.linalg.vector_norm(error, dim=1, keepdim=True) + 0.1)).square()
        optimizer.zero_grad()
        loss.sum(1).mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return {"draws": weights_hash(draws), "arithmetic": weights_hash(network.state_dict())}


if __name__ == "__main__":
    print(json.dumps(probe()))
