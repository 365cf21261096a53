# SPDX-License-Identifier: Apache-2.0
"""`scm bench`: what a training step costs by every tangent method, on a configuration's network.

All figures are ratios to one plain diffusion step of the same network on the same batch, in one
process, medians over interleaved rounds: absolute times depend on the machine and its load.
"""

import copy
import json
import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: on
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from scm_lightning.autodiff import TangentComputer
from scm_lightning.autodiff.methods import BY_NAME
from scm_lightning.callbacks.pictures import write_picture
from scm_lightning.cli.bench_attention import FORWARD, attention_steps
from scm_lightning.cli.costs import Cost, measure
from scm_lightning.cli.dry_run import dry_run as count
from scm_lightning.cli.plan import GPU
from scm_lightning.cli.plan import report as report_plan
from scm_lightning.core import NULL_LABEL, Bound, diffusion_loss
from scm_lightning.data import Batch
from scm_lightning.modules import ConsistencyModule, GenerativeModule
from scm_lightning.networks.classes import check_labels, num_known_classes
from scm_lightning.objectives import Consistency, TeacherVelocity
from scm_lightning.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN = "diffusion"
TOKENS = (512, 1024, 2048, 4096, 8192)


def training_steps(
    model: GenerativeModule, batch: Batch, compiled: bool = False
) -> dict[str, Callable[[], None]]:
    """Steps to compare: forward, tangent and backward of `training_step`, without the optimizer.

    Args:
        model: a student's module; or a teacher's, whose network is trained as a student too.
        batch: data to train on.
        compiled: whether to measure compiled steps too.

    Returns:
        By name: a plain diffusion step, and a step of the student by every tangent method.
    """
    network = model.trained_network()
    students = [model] if isinstance(model, ConsistencyModule) else _students_of(model)
    for student in students:
        student.setup("fit")
    first, *others = students
    steps: dict[str, Callable[[], None]] = {PLAIN: partial(_plain_step, first, network, batch)}
    if first.objective.tangents is None:
        steps[_kind(first)] = partial(_step, first, None, batch)
        return steps
    for name in BY_NAME:
        by_name = TangentComputer(name, check=False)
        steps[f"{_kind(first)}, {name}"] = partial(_step, first, by_name, batch)
    dual = TangentComputer(check=False)
    steps |= {f"{_kind(each)}, dual": partial(_step, each, dual, batch) for each in others}
    if compiled:
        whole = TangentComputer(check=False, compile=True)
        steps[f"{PLAIN}, compiled"] = partial(_plain_step, first, torch.compile(network), batch)
        steps[f"{_kind(first)}, dual, compiled"] = partial(_step, first, whole, batch)
    return steps


def _students_of(teacher: GenerativeModule) -> list[ConsistencyModule]:
    """A teacher's network as a student, from data and distilled from a copy of itself."""
    network, path = teacher.trained_network(), teacher.path
    source = copy.deepcopy(network)
    pair = ConsistencyModule(network, path=path)
    distilled = ConsistencyModule(
        network, TeacherVelocity(), source, start_from_teacher=False, path=path
    )
    return [each.to(teacher.device) for each in (pair, distilled)]


def _kind(student: ConsistencyModule) -> str:
    """What a student's steps are called."""
    if isinstance(student.objective, Consistency):
        return "sCD" if student.velocity_source.needs_teacher else "sCT"
    return type(student.objective).__name__


def _plain_step(student: ConsistencyModule, network: Any, batch: Batch) -> None:
    """A diffusion step of a student's network, at its times and with its conditions."""
    x0, labels, _ = batch
    t, t_end = student.objective.sample_times(len(x0), student.path, student.device)
    x_t, z = student.path.add_noise(x0, t)
    sigma_data = student.path.sigma_data
    F = Bound(network, labels, student.sample_guidance(len(x0)))(x_t / sigma_data, t, t_end)
    losses = diffusion_loss(F, student.path.velocity(x0, z, t), sigma_data=sigma_data)
    losses.mean().backward()  # type: ignore[no-untyped-call]


def _step(student: ConsistencyModule, tangents: TangentComputer | None, batch: Batch) -> None:
    student.objective.tangents = tangents
    student.training_step(batch, 0)["loss"].backward()  # type: ignore[no-untyped-call]


class BenchTrainer(Trainer):
    """Lightning's trainer with one more thing to do to a model: measure its step."""

    def bench(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        rounds: int = 15,
        compiled: bool = False,
        dry_run: bool = False,
        global_batch: int | None = None,
        gpu: GPU = GPU(),
        json: str | None = None,
    ) -> None:
        """Measure the training step of a configuration; write `bench.json` and `bench.png`.

        A dry run counts instead what the run would need, without weights, data or a GPU.

        Args:
            model: a teacher's or student's module, whose network is measured.
            datamodule: its data, for one batch; None in a dry run.
            rounds: rounds to take the median over.
            compiled: whether to measure compiled steps too; compiling takes minutes.
            dry_run: whether to count instead of measuring; see `scm_lightning.cli.dry_run`.
            global_batch: images per optimizer step that a dry run plans with; None for batch size
                times devices, nodes and accumulated batches of the configuration.
            gpu: the GPU that a dry run plans with.
            json: file that a dry run is written to, besides its tables; None for none.

        Raises:
            ValueError: if there are no rounds, or the model is none of this package's.
        """
        if rounds < 1 or not isinstance(model, GenerativeModule):
            raise ValueError(
                f"bench takes at least 1 round and a DiffusionModule or ConsistencyModule, got "
                f"{rounds} and {type(model).__name__}"
            )
        if dry_run:
            assert global_batch is not None, "the command line fills it in"
            report_plan(count(self, model, global_batch), gpu, json)
            return
        assert datamodule is not None, "the command line makes one"
        datamodule.prepare_data()
        datamodule.setup("fit")
        device = self.strategy.root_device
        x0, labels, _ = next(iter(datamodule.train_dataloader()))
        if labels is not None:
            check_labels(labels, num_known_classes(model), NULL_LABEL)
        batch = Batch(x0.to(device), None if labels is None else labels.to(device))
        network = model.to(device).train().trained_network()
        steps = training_steps(model, batch, compiled)
        with self.precision_plugin.train_step_context():
            opaque = [name for name in steps if name.endswith("compiled")]
            costs = measure(steps, network.parameters(), rounds, opaque)
        attention = {
            tokens: measure(attention_steps(tokens, device), [], max(3, rounds // 3))
            for tokens in TOKENS
        }
        parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        title = f"{type(network).__name__}, {parameters:.1f} M parameters, batch {len(batch.x0)}"
        report(title, costs, attention, Path(self.default_root_dir), device)


def report(
    title: str,
    steps: Mapping[str, Cost],
    attention: Mapping[int, Mapping[str, Cost]],
    folder: Path,
    device: torch.device,
) -> None:
    """Print the tables; write `bench.json` and `bench.png`."""
    console, plain = Console(), steps[PLAIN]
    table = Table(title=f"{title}: a plain diffusion step is 1")
    for heading in ("step", "time", "peak memory", "FLOPs", "FLOPs in forwards"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for name, cost in steps.items():
        ratio = cost.relative_to(plain)
        # A plain step is three forwards: forward, and backward to activations and to weights.
        cells = (ratio.seconds, ratio.bytes, ratio.flops, 3 * ratio.flops)
        table.add_row(name, *(f"{cell:.2f}" if cell else "-" for cell in cells))
    console.print(table)
    table = Table(title="attention, 4 heads of 64 channels: SDPA's forward is 1")
    for heading in ("tokens", "what", "time", "peak memory, MiB"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for tokens, costs in attention.items():
        for name, cost in costs.items():
            ratio = cost.relative_to(costs[FORWARD])
            table.add_row(f"{tokens:,}", name, f"{ratio.seconds:.2f}", f"{cost.bytes / 2**20:.1f}")
    console.print(table)
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
    is_drawn = write_picture(folder / "bench.png", lambda: plot(title, steps, attention))
    console.print(f"written to {folder}/bench.json{' and bench.png' if is_drawn else ''}")


def plot(
    title: str, steps: Mapping[str, Cost], attention: Mapping[int, Mapping[str, Cost]]
) -> "Figure":
    """Bars of the steps' time and memory, lines of attention's time over tokens."""
    from matplotlib.figure import Figure  # a second of import that no other command needs

    figure = Figure(figsize=(11, 4), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    ratios = [cost.relative_to(steps[PLAIN]) for cost in steps.values()]
    places = torch.arange(len(steps)).double()
    bars.barh((places - 0.2).tolist(), [r.seconds for r in ratios], 0.4, label="time")
    bars.barh((places + 0.2).tolist(), [r.bytes for r in ratios], 0.4, label="peak memory")
    bars.set_yticks(places.tolist(), list(steps))
    bars.invert_yaxis()
    bars.set_xlabel("relative to a plain diffusion step")
    bars.set_title(title)
    bars.legend()
    for name in next(iter(attention.values())):
        points = [
            (tokens, costs[name].seconds) for tokens, costs in attention.items() if name in costs
        ]
        lines.loglog(*zip(*points, strict=True), marker="o", label=name)
    lines.set_xticks(list(attention), [f"{tokens:,}" for tokens in attention])
    lines.minorticks_off()
    lines.set_xlabel("tokens")
    lines.set_ylabel("seconds")
    lines.set_title("attention")
    lines.legend()
    return figure
