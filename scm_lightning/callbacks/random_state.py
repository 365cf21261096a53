# SPDX-License-Identifier: Apache-2.0
"""Random numbers of a run, so that one that was interrupted draws what the unbroken one would have.

The numbers of a training step go on where those of the step before ended, whatever was drawn in
between: by a validation, by a new pass over the data, by the start of a process. Traps: a loader
draws a seed when it starts, and a validation that was done before an interruption is not done again
after it; without the rule either would shift all later noise. Every process has numbers of its own:
those of the first one, restored in all, would train them all on one noise.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Numbers(NamedTuple):
    """States of all generators of a process, as they come: they are taken after every step."""

    torch: Tensor
    numpy: Any
    python: Any
    cuda: Tensor | None


def random_numbers(device: torch.device) -> Numbers:
    """States of all generators of this process.

    Args:
        device: device that the process trains on.
    """
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    numpy = np.random.get_state(legacy=True)
    return Numbers(torch.get_rng_state(), numpy, random.getstate(), cuda)


def as_state(numbers: Numbers) -> dict[str, Any]:
    """The same as tensors and numbers, which a checkpoint can hold.

    Args:
        numbers: the states.

    Returns:
        `torch` (5056,) uint8; `cuda` (16,) uint8 on such a device; `numpy` and `python`: words of
        the Mersenne twisters (624,) and (625,) int64, and what is kept of a pair of normal numbers.
    """
    _, words, place, has_normal, normal = numbers.numpy
    version, python_words, python_normal = numbers.python
    state: dict[str, Any] = {
        "torch": numbers.torch,
        "numpy": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        "numpy_place": int(place),
        "numpy_normal": float(normal) if has_normal else None,
        "python": torch.tensor(python_words, dtype=torch.int64),
        "python_normal": python_normal,
    }
    assert version == 3, "Python 3's twister"
    return state if numbers.cuda is None else state | {"cuda": numbers.cuda}


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Go on from states that `as_state` returned.

    Args:
        state: the states; one of a GPU is left out where there is none.
        device: device that the process trains on.
    """
    torch.set_rng_state(state["torch"])
    normal = state["numpy_normal"]
    words = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(
        ("MT19937", words, state["numpy_place"], int(normal is not None), normal or 0.0)
    )
    random.setstate((3, tuple(state["python"].tolist()), state["python_normal"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_after(states: Sequence[Mapping[str, Any]], step: int, rank: int) -> None:
    """Seed this process's generators anew, where those of a checkpoint cannot be used.

    Noise that has been drawn is not drawn again, and it is the same whenever the run goes on from
    there.

    Args:
        states: states of the checkpoint, one per process of that run; none in an older one.
        step: optimizer steps of the checkpoint.
        rank: number of this process.
    """
    content = f"{step} {rank} ".encode() + b"".join(_bytes_of(each["torch"]) for each in states)
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 2
    torch.manual_seed(seed)  # of the GPU too
    np.random.seed(seed % 2**32)
    random.seed(seed)


def gathered(state: Mapping[str, Any], world_size: int) -> list[Mapping[str, Any]]:
    """States of all processes, in all of them.

    Args:
        state: this process's.
        world_size: number of processes.
    """
    if world_size == 1:
        return [state]
    states: list[Mapping[str, Any]] = [state] * world_size
    torch.distributed.all_gather_object(states, state)
    return states


def _bytes_of(x: Tensor) -> bytes:
    return x.numpy().tobytes()
