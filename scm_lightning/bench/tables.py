# SPDX-License-Identifier: Apache-2.0
"""Measurements and counts, as they are printed and written."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from scm_lightning.bench.compared import FORWARD, PLAIN
from scm_lightning.bench.measuring import Cost
from scm_lightning.bench.plan import GIB, GPU, Plan, Share, share
from scm_lightning.given_files import given_path
from scm_lightning.saying import say, show
from scm_lightning.whole_files import write_whole

NUMBERS_OF_GPUS = (1, 8, 64)
MIB = 2**20


def network_title(network: str, parameters: int) -> str:
    """Title of the tables."""
    return f"{network}, {parameters / 1e6:.1f} M parameters"


def report_costs(
    title: str,
    steps: Mapping[str, Cost],
    attention: Mapping[int, Mapping[str, Cost]],
    file: Path,
    device: torch.device,
) -> None:
    """Print the costs; write them as JSON."""
    # A plain step is three forwards: forward, and backward to activations and to weights.
    ratios = {name: cost.relative_to(steps[PLAIN]) for name, cost in steps.items()}
    costs = {name: (*ratio, 3 * ratio.flops) for name, ratio in ratios.items()}
    show(
        ("step", "time", "peak memory", "FLOPs", "FLOPs in forwards"),
        [(name, *(f"{x:.2f}" if x else "-" for x in each)) for name, each in costs.items()],
        numbers=True,
        title=f"{title}: a plain diffusion step is 1",
    )
    show(
        ("attention", "tokens", "time", "peak memory, MiB"),
        [
            (name, f"{tokens:,}", f"{x.seconds / of[FORWARD].seconds:.2f}", f"{x.bytes / MIB:.1f}")
            for tokens, of in attention.items()
            for name, x in of.items()
        ],
        numbers=True,
        title="4 heads of 64 channels: SDPA's forward is 1",
    )
    content = {
        "network": title,
        "machine": f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "steps": {name: cost._asdict() for name, cost in steps.items()},
        "attention": {
            tokens: {name: cost._asdict() for name, cost in costs.items()}
            for tokens, costs in attention.items()
        },
    }
    _write(file, content)


def report_plan(plan: Plan, gpu: GPU, file: str | None) -> None:
    """Print what a run needs; write it as JSON if there is a file to write.

    Args:
        plan: the run.
        gpu: the GPU to plan with.
        file: JSON file, or None.
    """
    shares = [share(plan, number, gpu.memory_gib * GIB) for number in NUMBERS_OF_GPUS]
    _show_run(plan, gpu)
    _show_memory(plan, shares, gpu)
    if file is not None:
        content = {
            **plan._asdict(),
            "step": plan.step._asdict(),
            "state": plan.state._asdict(),
            "flops": plan.flops,
            "gpu": asdict(gpu),
            "gpu_days": gpu.days(plan.flops),
            "shares": [
                {**each._asdict(), "total": each.total, "parts": each.parts} for each in shares
            ],
        }
        _write(Path(given_path(file)), content)


def _write(file: Path, content: object) -> None:
    write_whole(file, json.dumps(content, indent=2) + "\n")
    say(f"written to {file}")


def _show_run(plan: Plan, gpu: GPU) -> None:
    """Print what the whole run computes."""
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
    title = network_title(plan.network, plan.parameters)
    show(("", ""), list(rows.items()), title=title, show_header=False)


def _show_memory(plan: Plan, shares: list[Share], gpu: GPU) -> None:
    """Print what every GPU holds."""
    parts = ", ".join(f"{name} {size / GIB:.3g}" for name, size in plan.state._asdict().items())
    rows = []
    for each in shares:
        sizes = (each.state, each.gathered, each.activations, each.total)
        state, gathered, step, total = (f"{size / GIB:,.4g}" for size in sizes)
        fits = {0: "no", 1: "yes"}.get(each.parts, f"in {each.parts:,} parts")
        images = (f"{each.batch:,}", step, total, fits, f"{each.micro_batch:,}")
        rows.append((str(each.num_gpus), state, gathered, *images))
    show(
        ("GPUs", "state", "gathered", "images", "step", "total", "fits", "most at once"),
        rows,
        numbers=True,
        title=f"GiB on every GPU, sharded over several; a GPU has {gpu.memory_gib:g}",
        caption=f"state: {parts}. A step: {plan.step.fixed / GIB:.3g} + "
        f"{plan.step.per_image / GIB:.3g} per image. Without CUDA's own and fragmentation.",
    )
