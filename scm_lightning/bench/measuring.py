# SPDX-License-Identifier: Apache-2.0
"""Time, peak memory and FLOPs of functions that are to be compared with each other.

They are timed in interleaved rounds in one process, so that a change of the machine's load meets
them all; on the CPU it is the process's own time that counts.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from scm_lightning.bench.counting import Counter, hold_gradients
from scm_lightning.saying import counted

WARMUP = 2
COMPILED = "compiled"
"""End of the name of a compiled function, into which the counter of FLOPs cannot see: 0."""


class Cost(NamedTuple):
    """Cost of one call.

    Attributes:
        seconds: median time; of the processor on the CPU, of the clock on a GPU.
        bytes: largest memory held at once beyond what was held before.
        flops: operations of matrix products, convolutions and attention.
    """

    seconds: float
    bytes: float
    flops: float

    def relative_to(self, base: "Cost") -> "Cost":
        """Every cost as a multiple of another's; 0 where the other has none."""
        pairs = zip(self, base, strict=True)
        return Cost(*(own / other if other else 0.0 for own, other in pairs))


def measure(
    functions: Mapping[str, Callable[[], object]], parameters: Iterable[nn.Parameter], rounds: int
) -> dict[str, Cost]:
    """Measure functions.

    Args:
        functions: what to call, by name.
        parameters: whose gradients are zeroed before every call, kept in memory.
        rounds: rounds to take the median time over.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its every start
    parameters = list(parameters)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    with counted("timing", rounds + WARMUP) as advance:
        for _ in range(rounds + WARMUP):
            for name, function in functions.items():
                hold_gradients(parameters)
                start = _clock()
                function()
                seconds[name].append(_clock() - start)
            advance(1)
    costs = {}
    for name, function in functions.items():
        counter = Counter()
        if not name.endswith(COMPILED):
            hold_gradients(parameters)
            with counter:
                function()
        hold_gradients(parameters)
        median = statistics.median(seconds[name][WARMUP:])
        costs[name] = Cost(median, peak_memory(function), float(counter.flops))
    return costs


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak_memory(function: Callable[[], object]) -> float:
    """Most that is allocated at once during a call, inside its operations too. Bytes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return float(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    assert recorded.profiler is not None
    results = recorded.profiler.kineto_results
    assert results is not None
    held = peak = 0
    for event in results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return float(peak)
