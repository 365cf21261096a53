# SPDX-License-Identifier: Apache-2.0
"""The table of scm_lightning/teachers/README.md, every cell from a run.

    python tests/teachers/table.py

Each source writes a small trained file, is loaded, looks at toy data and teaches a student for 20
steps of sCD by `scm fit`. Then both map the same noise to data: the teacher by its ODE, the student
in one step.
"""

import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: on
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from teachers.starts import STARTS, Start  # noqa: E402
from tiny import trainer  # noqa: E402

from scm_lightning import ConsistencyModule  # noqa: E402
from scm_lightning.core import Bound, Guided, TrigFlow  # noqa: E402
from scm_lightning.sampling import sample_consistency, sample_ode, time_grid  # noqa: E402
from scm_lightning.teachers import first_look, transplant  # noqa: E402

README = ROOT / "scm_lightning" / "teachers" / "README.md"
HEAD = (
    "| source | off by | first look | guidance | the student starts with | sCD, 20 steps |\n"
    "|---|---|---|---|---|---|\n"
)


def gap(module: ConsistencyModule, teacher: Any, start: Start, batch: Any) -> float:
    """Distance of the student's jump from t = 1.1 to the end of the teacher's ODE, mean square.

    In units of sigma_data^2.
    """
    path, x0, given = TrigFlow(start.sigma_data), batch.x0, batch.given()
    x_t, _ = path.add_noise(x0, torch.full((len(x0),), 1.1), torch.Generator().manual_seed(7))
    times = [t for t in time_grid(24, path) if t < 1.1]
    end = sample_ode(Guided(teacher, given), x_t, [1.1, *times], path=path, solver="heun")
    scale = None if module.guidance is None else torch.ones(len(x0))
    F = Bound(module.student.eval(), given.labels, scale, named=given.named)
    jump = sample_consistency(F, x_t, [1.1], path=path)
    return float((jump - end).square().mean()) / start.sigma_data**2


def guides(teacher: Any, batch: Any, start: Start) -> bool:
    """Tell whether the teacher can be guided."""
    num = len(batch.x0)
    try:
        Guided(teacher, batch.given(), torch.full((num,), 1.5))(
            batch.x0 / start.sigma_data, torch.full((num,), 1.0)
        )
    except ValueError:
        return False
    return True


def row(start: Start) -> str:
    """Run one source."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        written = start.write(folder)
        module, data = start.module(folder, written)
        teacher = module.teacher.network
        batch = next(iter(data.train_dataloader()))
        look = first_look(
            teacher, batch.x0, batch.given(), TrigFlow(start.sigma_data), start.num_classes
        )
        own = teacher.own_network()
        copied = "-" if own is None else f"{transplant(own, module.student).share:.0%}"
        if start.student is None:
            copied = "its own weights" if own is None else "other architecture"
        guidance = start.guidance if guides(teacher, batch, start) else "refused"
        before = gap(module, teacher, start, batch)
        trainer(20).fit(module, data)
        after = gap(module, teacher, start, batch)
    conversion = getattr(teacher, "conversion", None)
    errors = ", ".join(f"{a:.2f} ({b:.2f})" for a, b in zip(look.teacher, look.linear, strict=True))
    cells = [
        start.name,
        "-" if conversion is None else f"{conversion.error:.0e}",
        errors + ("" if not look.misfit() else " refused"),
        guidance,
        copied,
        f"{before:.2f} to {after:.2f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Run all sources, and write the table."""
    rows = []
    for start in STARTS:
        if not any(word in start.name for word in sys.argv[1:] or [""]):
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            rows.append(row(start))
        print(rows[-1], end="", flush=True)
    text = README.read_text()
    table = HEAD + "".join(rows)
    found = re.sub(
        r"TABLE\n|\| source \|.*?\n(?=\n)", lambda _: table, text, count=1, flags=re.DOTALL
    )
    README.write_text(found)


if __name__ == "__main__":
    main()
