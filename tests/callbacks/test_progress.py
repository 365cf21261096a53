# SPDX-License-Identifier: Apache-2.0
"""How far a run is, as it is seen on a terminal and in a file."""

import re
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from gaussian import PATH
from lightning.pytorch import Callback
from rich import reconfigure
from tiny import loader, mlp, trainer

from scm_lightning import DiffusionModule
from scm_lightning.callbacks import Progress, Summary, progress
from scm_lightning.callbacks.progress import MOST_LINES, _round
from scm_lightning.saying import LITERAL

LINE = re.compile(
    r"step (\d+)/(\d+) \| loss (\S+) \| lr (\S+) \| [\d,]+ images/s \| RAM \d+\.\d GiB"
    r"(?: \| \d+:\d\d:\d\d left)?"
)


class Losses(DiffusionModule):
    """A module that says what its losses are: the numbers of the batches."""

    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx)["loss"] * 0.0 + batch_idx}


class Scored(DiffusionModule):
    """A module whose validation has a score."""

    def validation_step(self, request, batch_idx):
        self.log("val/[score]_of", torch.tensor(0.25), batch_size=len(request.x0))
        return torch.zeros(1)


def fit(steps, module=DiffusionModule, **options):
    bar = options.pop("bar", None) or Progress()
    run = trainer(steps, callbacks=[bar], enable_progress_bar=True, **options)
    run.fit(module(mlp(), path=PATH, lr_schedule=None), loader(), val_dataloaders=loader())
    return run


def test_off_a_terminal_a_run_prints_plain_lines(capsys):
    """Their losses are means since the line before: of batches 1 to 9, then 10 to 19."""
    fit(60, Losses, limit_val_batches=0, bar=Progress(line_every_n_steps=10))
    _, *printed = capsys.readouterr().out.splitlines()  # the first says what the steps reach
    lines = [LINE.fullmatch(line) for line in printed]
    assert all(lines), printed
    assert [int(line[1]) for line in lines if int(line[1]) % 10 in (0, 1)][:3] == [1, 10, 20]
    assert {int(line[2]) for line in lines} == {60}
    assert [float(line[3]) for line in lines[:3]] == [0.0, 5.0, 14.5]
    assert "left" in printed[1]
    assert "left" not in printed[-1]


def test_a_batch_is_no_step_where_gradients_are_accumulated(capsys):
    """The loss is that of a batch, and not the part that Lightning divides it into."""
    fit(4, Losses, limit_val_batches=0, accumulate_grad_batches=2)
    _, *printed = capsys.readouterr().out.splitlines()
    lines = [LINE.fullmatch(line) for line in printed]
    assert [int(line[1]) for line in lines] == [1, 2, 3, 4]
    assert [float(line[3]) for line in lines] == [0.5, 2.5, 4.5, 6.5]


def test_scores_have_a_line_of_their_own(capsys):
    fit(4, Scored, val_check_interval=2, check_val_every_n_epoch=None, limit_val_batches=1)
    scores = [line for line in capsys.readouterr().out.splitlines() if "val" in line]
    assert scores == [f"step {step}/4 | val/[score]_of 0.25" for step in (2, 4)]


@pytest.mark.parametrize("total", [1, 20, 300, 2500, 30_000, 400_000, 7_654_321])
def test_no_run_asks_for_more_than_fifty_lines(total):
    every = _round(total / MOST_LINES)
    assert total / every <= MOST_LINES
    assert total < 3 or total / every > MOST_LINES / 3
    assert _round(float("inf")) is None


def test_lines_must_have_steps_between_them():
    with pytest.raises(ValueError, match="line_every_n_steps must be at least 1, got 0"):
        Progress(line_every_n_steps=0)


@pytest.fixture
def terminal(monkeypatch):
    """A terminal 80 letters wide."""
    monkeypatch.setattr(progress, "console", lambda: SimpleNamespace(is_interactive=True))
    written = StringIO()
    shown = {"file": written, "force_terminal": True, "width": 80, "color_system": None}
    yield written, Progress(console_kwargs=shown)
    reconfigure(**LITERAL)


def test_the_bar_counts_steps_shows_the_loss_and_fits_80_letters(terminal):
    written, bar = terminal
    fit(7, bar=bar, limit_train_batches=3, accumulate_grad_batches=2, limit_val_batches=0)
    lines = [line for line in re.split(r"[\r\n]", written.getvalue()) if "Training" in line]
    assert all(len(re.sub(r"\x1b\[[\d;?]*\w", "", line)) <= 80 for line in lines)
    assert re.search(r"Training ━+ 7/7 .*loss: [\d.]+", lines[-1])


def test_the_bar_of_a_long_run_fits_80_letters(terminal):
    _, bar = terminal
    fit(2, bar=bar, limit_val_batches=0)
    task = bar.train_progress_bar
    bar._metric_component.update({"loss": "-0.03456"})
    bar.progress.update(task.id, total=1_000_000, completed=100_000)
    task.start_time -= 90_000
    table = bar.progress.make_tasks_table([task])
    assert bar._console.measure(table).minimum <= 80
    with bar._console.capture() as captured:
        bar._console.print(table)
    line = captured.get().rstrip("\n")
    assert "100000/1000000" in line
    assert "1 day, 1:00" in line
    assert "loss: -0.03456" in line
    assert len(line) <= 80


def test_the_bar_is_closed_before_anything_else_is_printed(terminal):
    written, bar = terminal

    class Closing(Callback):
        def on_train_end(self, trainer, pl_module):
            assert not bar.progress.live.is_started
            assert written.getvalue().endswith("\n\x1b[?25h")  # a new line, and a cursor

        on_validation_end = on_test_epoch_end = on_predict_end = on_train_end

    run = trainer(2, callbacks=[bar, Closing()], enable_progress_bar=True)
    module = Scored(mlp(), path=PATH)
    module.predict_step = module.test_step = module.validation_step = lambda *_: torch.zeros(1)
    run.fit(module, loader())
    for stage in (run.validate, run.test, run.predict):
        run.limit_val_batches = run.limit_test_batches = run.limit_predict_batches = 2
        stage(module, loader())


def test_the_summary_lists_what_has_parameters(capsys):
    run = trainer(1, callbacks=[Summary()], enable_model_summary=True)
    run.fit(DiffusionModule(mlp(), path=PATH), loader())
    out = capsys.readouterr().out
    assert re.search(r"network +│ MLP", out)
    assert re.search(r"\d+\.\d K of \d+\.\d K parameters are trained", out)
    for absent in ("further_emas", "FLOPs", "eval mode"):
        assert absent not in out
