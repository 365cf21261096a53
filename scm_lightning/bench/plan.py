# SPDX-License-Identifier: Apache-2.0
r"""The run that is made of such steps, divided over GPUs.

    run        images = steps * global batch,    FLOPs = images * FLOPs per image of a step
    GPU-days   FLOPs / (FLOP/s of a GPU * utilization * 86400)
    one of N   state / N + gathered + fixed + images of a micro-batch * memory per image

Left out: the CUDA context and fragmentation (a few GiB), and the copies that an optimizer makes
while it steps, when the activations are gone.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from scm_lightning.bench.counting import StateMemory

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """The GPU that is planned with.

    Args:
        memory_gib: memory of one GPU. GiB.
        tflops: its dense speed in the type that is computed in; an H100's in bfloat16 by default.
            TFLOP/s.
        utilization: share of that speed that a run reaches (assumed).

    Raises:
        ValueError: if a number is out of range.
    """

    memory_gib: float = 80.0
    tflops: float = 989.0
    utilization: float = 0.4

    def __post_init__(self) -> None:
        if not (self.memory_gib > 0 and self.tflops > 0 and 0 < self.utilization <= 1):
            raise ValueError(
                f"a GPU needs positive memory_gib and tflops and a utilization in (0, 1], got "
                f"{self.memory_gib}, {self.tflops} and {self.utilization}"
            )

    def days(self, flops: float) -> float:
        """Days that one GPU takes for a number of FLOPs."""
        return flops / (self.tflops * 1e12 * self.utilization * 86400)


class StepCost(NamedTuple):
    """Cost of a training step.

    Attributes:
        forward_flops: of one forward of the trained network, per image.
        flops: of the whole step, per image.
        fixed: memory that does not depend on the batch. Bytes.
        per_image: memory per image of the batch. Bytes.
    """

    forward_flops: float
    flops: float
    fixed: int
    per_image: int

    def memory(self, batch_size: int) -> int:
        """Memory that a step holds at once beside the state. Bytes."""
        return self.fixed + self.per_image * batch_size


class Plan(NamedTuple):
    """Everything that a dry run finds out.

    Attributes:
        network: class of the trained network.
        parameters: its parameters.
        step: what its training step costs.
        state: what the run holds from step to step.
        gathered: parameters that are whole at once when the state is sharded. Bytes.
        global_batch: images per optimizer step, over all processes.
        steps: optimizer steps; 0 if the configuration sets no number.
    """

    network: str
    parameters: int
    step: StepCost
    state: StateMemory
    gathered: int
    global_batch: int
    steps: int

    @property
    def flops(self) -> float:
        """FLOPs of the whole run."""
        return self.steps * self.global_batch * self.step.flops


class Share(NamedTuple):
    """One GPU's part when a run is sharded over several; bytes, and images.

    Attributes:
        num_gpus: number of GPUs.
        state: its part of the state.
        gathered: parameters of others that it holds at once.
        batch: its images of an optimizer step.
        activations: what a step of all of them at once would hold.
        micro_batch: most images that fit at once; 0 if none does.
    """

    num_gpus: int
    state: int
    gathered: int
    batch: int
    activations: int
    micro_batch: int

    @property
    def total(self) -> int:
        """Memory of a step without gradient accumulation."""
        return self.state + self.gathered + self.activations

    @property
    def parts(self) -> int:
        """Micro-batches to accumulate the gradients of; 0 if not even one image fits."""
        return -(-self.batch // self.micro_batch) if self.micro_batch else 0


def share(plan: Plan, num_gpus: int, memory: float) -> Share:
    """Divide a run over GPUs.

    Args:
        plan: the run.
        num_gpus: number of GPUs N.
        memory: of one GPU. Bytes.
    """
    state = -(-plan.state.total // num_gpus)
    gathered = plan.gathered if num_gpus > 1 else 0
    batch = -(-plan.global_batch // num_gpus)
    room = memory - state - gathered - plan.step.fixed
    micro_batch = max(0, math.floor(room / max(plan.step.per_image, 1)))
    return Share(num_gpus, state, gathered, batch, plan.step.memory(batch), micro_batch)
