# SPDX-License-Identifier: Apache-2.0
r"""What a planned run needs, divided over GPUs, and the tables that show it.

    run        images = steps * global batch,    FLOPs = images * FLOPs per image of a step
    GPU-days   FLOPs / (FLOP/s of a GPU * utilization * 86400)
    one of N   state / N + gathered + fixed + images of a micro-batch * memory per image

Left out: the CUDA context and fragmentation (a few GiB), and the copies that an optimizer makes
while it steps, when the activations are gone.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from scm_lightning.cli.memory import StateMemory
from scm_lightning.given_files import given_path

NUMBERS_OF_GPUS = (1, 8, 64)
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
    """What a training step costs.

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
        """What a step holds at once beside the state. Bytes."""
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


def report(plan: Plan, gpu: GPU, file: str | None) -> None:
    """Print what a run needs; write it as JSON if there is a file to write.

    Args:
        plan: the run.
        gpu: the GPU to plan with.
        file: JSON file, or None.
    """
    shares = [share(plan, number, gpu.memory_gib * GIB) for number in NUMBERS_OF_GPUS]
    console = Console()
    console.print(run_table(plan, gpu))
    console.print(memory_table(plan, shares, gpu))
    if file is not None:
        file = given_path(file)
        content = {
            **plan._asdict(),
            "step": plan.step._asdict(),
            "state": asdict(plan.state),
            "flops": plan.flops,
            "gpu": asdict(gpu),
            "gpu_days": gpu.days(plan.flops),
            "shares": [
                {**each._asdict(), "total": each.total, "parts": each.parts} for each in shares
            ],
        }
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(content, indent=2) + "\n")
        console.print(f"written to {file}")


def run_table(plan: Plan, gpu: GPU) -> Table:
    """What the whole run computes."""
    title = f"{plan.network}, {plan.parameters / 1e6:.1f} M parameters"
    table = Table(title=title, show_header=False)
    step, forward = plan.step, plan.step.forward_flops
    rows = {
        "one forward": f"{forward / 1e9:,.4g} GFLOPs, {forward / 2e9:,.4g} GMACs",
        "one training step": f"{step.flops / 1e9:,.4g} GFLOPs per image, "
        f"{step.flops / forward:.2f} forwards",
        "global batch": f"{plan.global_batch:,} images",
    }
    if plan.steps:
        rows |= {
            "steps": f"{plan.steps:,}",
            "images seen": f"{plan.steps * plan.global_batch / 1e6:,.4g} M",
            "the run": f"{plan.flops / 1e18:,.4g} EFLOPs",
            "GPU-days": f"{gpu.days(plan.flops):,.4g} at {gpu.utilization:.0%} (assumed) of "
            f"{gpu.tflops:g} TFLOP/s",
        }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def memory_table(plan: Plan, shares: list[Share], gpu: GPU) -> Table:
    """What every GPU holds."""
    state = plan.state
    parts = ", ".join(f"{name} {value / GIB:.3g}" for name, value in asdict(state).items())
    table = Table(
        title=f"GiB on every GPU, sharded over several; a GPU has {gpu.memory_gib:g}",
        caption=f"state: {parts}. A step: {plan.step.fixed / GIB:.3g} + "
        f"{plan.step.per_image / GIB:.3g} per image. Without CUDA's own and fragmentation.",
    )
    headings = ("GPUs", "state", "gathered", "images", "step", "total", "fits", "most at once")
    for heading in headings:
        table.add_column(heading, justify="right")
    for each in shares:
        sizes = (each.state, each.gathered, each.batch, each.activations, each.total)
        numbers = [f"{size / GIB:,.4g}" for size in sizes]
        numbers[2] = f"{each.batch:,}"
        fits = {0: "no", 1: "yes"}.get(each.parts, f"in {each.parts:,} parts")
        table.add_row(str(each.num_gpus), *numbers, fits, f"{each.micro_batch:,}")
    return table
