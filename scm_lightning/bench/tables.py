# SPDX-License-Identifier: Apache-2.0
"""What was measured or counted, as it is printed, written and drawn."""

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from scm_lightning.bench.compared import FORWARD, PLAIN
from scm_lightning.bench.measuring import Cost
from scm_lightning.bench.plan import GIB, GPU, Plan, Share, share
from scm_lightning.given_files import given_path
from scm_lightning.whole_files import write_picture, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS_OF_GPUS = (1, 8, 64)
WORDS = ("what", "")
"""Headings of columns that hold words, and no numbers."""


def _table(
    title: str, headings: Iterable[str], rows: Iterable[Iterable[str]], **options: Any
) -> Table:
    table = Table(title=title, **options)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in WORDS else "right")
    for row in rows:
        table.add_row(*row)
    return table


def network_title(network: str, parameters: int) -> str:
    """What the tables are about."""
    return f"{network}, {parameters / 1e6:.1f} M parameters"


def report_costs(
    title: str,
    steps: Mapping[str, Cost],
    attention: Mapping[int, Mapping[str, Cost]],
    folder: Path,
    device: torch.device,
) -> None:
    """Print what was measured; write `bench.json` and `bench.png`."""
    console = Console()
    console.print(_steps_table(title, steps))
    console.print(_attention_table(attention))
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
    write_whole(folder / "bench.json", json.dumps(content, indent=2) + "\n")
    is_drawn = write_picture(folder / "bench.png", lambda: _plot(title, steps, attention))
    console.print(f"written to {folder}/bench.json{' and bench.png' if is_drawn else ''}")


def _steps_table(title: str, steps: Mapping[str, Cost]) -> Table:
    rows = []
    for name, cost in steps.items():
        ratio = cost.relative_to(steps[PLAIN])
        # A plain step is three forwards: forward, and backward to activations and to weights.
        cells = (ratio.seconds, ratio.bytes, ratio.flops, 3 * ratio.flops)
        rows.append([name, *(f"{cell:.2f}" if cell else "-" for cell in cells)])
    headings = ("step", "time", "peak memory", "FLOPs", "FLOPs in forwards")
    return _table(f"{title}: a plain diffusion step is 1", headings, rows)


def _attention_table(attention: Mapping[int, Mapping[str, Cost]]) -> Table:
    rows = []
    for tokens, costs in attention.items():
        for name, cost in costs.items():
            time = f"{cost.relative_to(costs[FORWARD]).seconds:.2f}"
            rows.append((f"{tokens:,}", name, time, f"{cost.bytes / 2**20:.1f}"))
    headings = ("tokens", "what", "time", "peak memory, MiB")
    return _table("attention, 4 heads of 64 channels: SDPA's forward is 1", headings, rows)


def _plot(
    title: str, steps: Mapping[str, Cost], attention: Mapping[int, Mapping[str, Cost]]
) -> "Figure":
    """Bars of the steps' time and memory, lines of attention's time over tokens."""
    from matplotlib.figure import Figure  # a second of import that no other command needs

    figure = Figure(figsize=(11, 4), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    ratios = [cost.relative_to(steps[PLAIN]) for cost in steps.values()]
    places = range(len(steps))
    bars.barh([place - 0.2 for place in places], [r.seconds for r in ratios], 0.4, label="time")
    bars.barh(
        [place + 0.2 for place in places], [r.bytes for r in ratios], 0.4, label="peak memory"
    )
    bars.set_yticks(places, list(steps))
    bars.invert_yaxis()
    bars.set(xlabel="relative to a plain diffusion step", title=title)
    bars.legend()
    for name in next(iter(attention.values())):
        points = [(tokens, of[name].seconds) for tokens, of in attention.items() if name in of]
        lines.loglog(*zip(*points, strict=True), marker="o", label=name)
    lines.set_xticks(list(attention), [f"{tokens:,}" for tokens in attention])
    lines.minorticks_off()
    lines.set(xlabel="tokens", ylabel="seconds", title="attention")
    lines.legend()
    return figure


def report_plan(plan: Plan, gpu: GPU, file: str | None) -> None:
    """Print what a run needs; write it as JSON if there is a file to write.

    Args:
        plan: the run.
        gpu: the GPU to plan with.
        file: JSON file, or None.
    """
    shares = [share(plan, number, gpu.memory_gib * GIB) for number in NUMBERS_OF_GPUS]
    console = Console()
    console.print(_run_table(plan, gpu))
    console.print(_memory_table(plan, shares, gpu))
    if file is not None:
        file = given_path(file)
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
        write_whole(Path(file), json.dumps(content, indent=2) + "\n")
        console.print(f"written to {file}")


def _run_table(plan: Plan, gpu: GPU) -> Table:
    """What the whole run computes."""
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
    return _table(title, ("", ""), rows.items(), show_header=False)


def _memory_table(plan: Plan, shares: list[Share], gpu: GPU) -> Table:
    """What every GPU holds."""
    parts = ", ".join(f"{name} {size / GIB:.3g}" for name, size in plan.state._asdict().items())
    rows = []
    for each in shares:
        sizes = (each.state, each.gathered, each.activations, each.total)
        state, gathered, step, total = (f"{size / GIB:,.4g}" for size in sizes)
        fits = {0: "no", 1: "yes"}.get(each.parts, f"in {each.parts:,} parts")
        images = (f"{each.batch:,}", step, total, fits, f"{each.micro_batch:,}")
        rows.append((str(each.num_gpus), state, gathered, *images))
    return _table(
        f"GiB on every GPU, sharded over several; a GPU has {gpu.memory_gib:g}",
        ("GPUs", "state", "gathered", "images", "step", "total", "fits", "most at once"),
        rows,
        caption=f"state: {parts}. A step: {plan.step.fixed / GIB:.3g} + "
        f"{plan.step.per_image / GIB:.3g} per image. Without CUDA's own and fragmentation.",
    )
