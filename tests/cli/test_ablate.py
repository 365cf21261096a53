# SPDX-License-Identifier: Apache-2.0
"""`scm ablate`: real runs of a few steps, what is kept, what fails, and what is refused."""

import json
import statistics
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import malformed_place
import pytest
import yaml

from scm_lightning.cli import main
from scm_lightning.cli.ablate import parse
from scm_lightning.cli.ablation import RECORD, TEACHER, Ablation, Overrides, trials
from scm_lightning.cli.ablation_report import collect, failures, markdown, plot

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted((CONFIGS / "ablations").glob("*.yaml"))
SCORE = "fd/1_step"
STAGES = ("fit", "test")
BOUND = "model.init_args.objective.init_args.bound.kind"
STEPS = "model.init_args.sampling.teacher.num_steps"


def content(folder: Path) -> dict[str, object]:
    """Two variants that share their teacher and a third that no module accepts."""
    noise = {"times": [0.2, 1.1], "num_batches": 2, "num_samples": 8}
    return {
        "title": "Bound of the tangent",
        "question": "Which norm?",
        "base": str(CONFIGS / "digits_sct.yaml"),
        "teacher": str(CONFIGS / "digits_teacher.yaml"),
        "root": str(folder / "ablation"),
        "seeds": [1, 2],
        "scores": [SCORE, "accuracy/2_step"],
        "variants": {
            "l2": {},
            "rms": {"student": {BOUND: "rms"}},
            "broken": {"student": {BOUND: "l3"}},
        },
        "common": {
            "shared": {
                "trainer.max_steps": 2,
                "trainer.limit_val_batches": 0,
                "data.init_args.root": str(folder / "shards"),
                "data.init_args.num_test_samples": 50,
            },
            "student": {
                STEPS: 2,
                "trainer.callbacks": [
                    {"class_path": "scm_lightning.callbacks.GradientNoise", "init_args": noise}
                ],
            },
        },
    }


def arguments(folder: Path, *further: str, **changes: object) -> list[str]:
    """Words after `ablate`, of a configuration with some keys changed."""
    (folder / "ablation.yaml").write_text(
        yaml.safe_dump(content(folder) | changes, sort_keys=False)
    )
    return ["--config", str(folder / "ablation.yaml"), *further]


@pytest.fixture(scope="module", autouse=True)
def _one_parser():
    with malformed_place.parser_built_once():
        yield


class Processes:
    """Stands in for `Popen`: the same command lines, without starting Python again."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []

    def __call__(self, command, stdout, **options):
        folder = next(word for word in command if "default_root_dir" in word).partition("=")[2]
        self.stages.append(("/".join(Path(folder).parts[-3:]), command[3]))
        code = 0
        with redirect_stdout(stdout), redirect_stderr(stdout):
            try:
                main(command[3:])
            except SystemExit as stopped:
                code = stopped.code
        return nullcontext(SimpleNamespace(wait=lambda: code))


@pytest.fixture
def processes(monkeypatch):
    stand_in = Processes()
    monkeypatch.setattr("scm_lightning.cli.ablate.Popen", stand_in)
    return stand_in


@pytest.fixture(scope="module")
def done(tmp_path_factory, _one_parser):
    """An ablation that was run once; its folder and what was started."""
    folder, stand_in = tmp_path_factory.mktemp("ablate"), Processes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scm_lightning.cli.ablate.Popen", stand_in)
        main(["ablate", *arguments(folder)])
    return folder, stand_in.stages


def test_every_run_is_done_once_and_teachers_are_shared(done):
    _, stages = done
    assert stages == [
        ("teachers/l2/seed_1", "fit"),
        ("teachers/l2/seed_2", "fit"),
        *[
            (f"students/{name}/seed_1", stage)
            for name in ("l2", "rms")
            for stage in ("fit", "test")
        ],
        ("students/broken/seed_1", "fit"),
        *[
            (f"students/{name}/seed_2", stage)
            for name in ("l2", "rms")
            for stage in ("fit", "test")
        ],
        ("students/broken/seed_2", "fit"),
    ]


def test_results_are_the_runs_own(done):
    """Scores from metrics.json, curves from gradient_noise.json; students have their teacher."""
    root = done[0] / "ablation"
    results = json.loads((root / "results.json").read_text())
    values = []
    for seed in (1, 2):
        run = root / "students" / "rms" / f"seed_{seed}"
        values.append(json.loads((run / "metrics.json").read_text())[SCORE]["value"])
        noise = json.loads((run / "gradient_noise.json").read_text())
        found = results["variants"]["rms"]["curves"][str(seed)]
        assert found["gradient_noise"] == noise["gradient_noise"]
        saved = yaml.safe_load((run / "config.yaml").read_text())
        assert saved["seed_everything"] == seed
        assert saved["model"]["init_args"]["objective"]["init_args"]["bound"]["kind"] == "rms"
        teacher = root / "teachers" / "l2" / f"seed_{seed}" / "checkpoints" / "last.ckpt"
        assert saved["model"]["init_args"]["teacher"] == str(teacher)
    score = results["variants"]["rms"]["scores"][SCORE]
    assert list(score["seeds"].values()) == values
    assert score["mean"] == pytest.approx(statistics.fmean(values))
    assert score["standard_deviation"] == pytest.approx(statistics.stdev(values))
    assert values[0] != values[1]
    assert (root / "plot.png").stat().st_size > 10_000


def test_a_failing_variant_is_a_row_with_its_last_line(done):
    table = (done[0] / "ablation" / "table.md").read_text()
    assert "| broken | - | - | 2 of 2 |" in table
    assert "- broken, seed 1: model" in table
    assert "none, got l3" in table


def test_what_is_finished_is_kept(done, processes, capsys):
    """Called again with two variants changed: these alone are run, on the teacher that is there."""
    folder = done[0]
    changed = content(folder)["variants"] | {"broken": {}, "rms": {"student": {STEPS: 4}}}
    main(["ablate", *arguments(folder, "--seeds", "[1]", variants=changed)])
    assert processes.stages == [
        *[(f"students/{name}/seed_1", stage) for name in ("rms", "broken") for stage in STAGES],
    ]
    assert "1 of 3 runs are finished" in capsys.readouterr().out
    table = (folder / "ablation" / "table.md").read_text()
    assert "0 of 1" in table
    assert "2 of 2" not in table


def test_students_of_a_failed_teacher_are_reported(tmp_path, processes, capsys):
    broken = content(tmp_path)["common"] | {"teacher": {"trainer.max_steps": "many"}}
    with pytest.raises(SystemExit):
        main(["ablate", *arguments(tmp_path, "--seeds", "[3]", common=broken)])
    assert "no run of the ablation has finished: trainer.max_steps" in capsys.readouterr().err
    assert [stage for _, stage in processes.stages] == ["fit"]
    table = (tmp_path / "ablation" / "table.md").read_text()
    assert table.count("no teacher: trainer.max_steps must be an int, got many") == 3


def test_variants_win_over_common_and_students_over_shared(tmp_path):
    """And a teacher with options of its own is trained beside the shared one."""
    common = Overrides(shared={"a": 1, "b": 1}, teacher={"b": 2}, student={"c": 1})
    own = Overrides(shared={"c": 2}, teacher={"d": 3})
    ablation = Ablation(
        "t",
        "q",
        "b.yaml",
        {"x": Overrides(), "y": own, "z": Overrides()},
        ["fd"],
        str(tmp_path),
        "t.yaml",
        common,
        [7],
    )
    x, y, z = (trial.run for trial in trials(ablation))
    assert x.options == {"a": 1, "b": 1, "c": 1, "seed_everything": 7}
    assert y.options == {"a": 1, "b": 1, "c": 2, "seed_everything": 7}
    assert x.teacher.options == {"a": 1, "b": 2, "seed_everything": 7}
    assert y.teacher.options == {"a": 1, "b": 2, "c": 2, "d": 3, "seed_everything": 7}
    assert z.teacher is x.teacher
    assert f"--{TEACHER}={tmp_path}/teachers/x/seed_7/checkpoints/last.ckpt" in z.words("fit")


def test_table_and_plot_by_hand(tmp_path):
    """Seeds 1, 2, 6: mean 3, standard deviation sqrt(7); one of four failed."""
    variants = {"one": Overrides()}
    seeds = [1, 2, 3, 4]
    ablation = Ablation("T", "Q?", "b", variants, [SCORE], str(tmp_path), seeds=seeds)
    planned = trials(ablation)
    for trial, value in zip(planned, (1.0, 2.0, 6.0), strict=False):
        trial.run.folder.mkdir(parents=True)
        (trial.run.folder / "metrics.json").write_text(json.dumps({SCORE: {"value": value}}))
    results = collect(ablation, planned, {planned[3].run.folder: "out of memory"})
    assert failures(results) == ["one, seed 4: out of memory"]
    assert "| one | 3 +- 2.6 (1, 2, 6) | 1 of 4 |" in markdown(results)
    panel = plot(results).axes[0]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["one"]
    assert panel.get_ylim()[1] > 6.0
    ablation = Ablation("T", "Q?", "b", variants, ["fd/3"], str(tmp_path), seeds=[1])
    with pytest.raises(ValueError, match=f"got fd/3; .* has {SCORE}"):
        collect(ablation, trials(ablation), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quesTion": "?"}, "quesTion"),
        ({"variants": {"a": {"pupil": {"a": 1}}}}, "pupil.a is no option; there are shared, st"),
        ({"variants": {}}, "at least one variant, score, seed and job, got 0, 2, 2 and 1"),
        ({"variants": {"a/b": {}}}, "name must be that of a folder, got 'a/b'"),
        ({"variants": {"..": {}}}, "name must be that of a folder, got '..'"),
        ({"variants": {3: {}}}, "name must be that of a folder, got 3"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"seeds": ["one"]}, "seeds"),
        ({"jobs": 0}, "and 0"),
        ({"common": {"student": {"seed_everything": 3}}}, "got seed_everything in common"),
        ({"common": {"student": {TEACHER: "x"}}}, f"got {TEACHER} in common"),
        ({"teacher": None, "common": {"teacher": {"a": 1}}}, "has no overrides of one"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_does_not_fit_is_refused_in_one_line(changes, message, tmp_path, processes, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["ablate", *arguments(tmp_path, **changes)])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert not processes.stages


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_ablations_come_to_runs_that_are_understood(file, monkeypatch, capsys):
    """Every option of every variant is one of `scm fit`'s."""
    monkeypatch.chdir(CONFIGS.parent)
    ablation = parse(["--config", str(file), "--seeds", "[1]"])
    assert ablation.root == f"runs/ablations/{file.stem}"
    runs = [trial.run for trial in trials(ablation)]
    teachers = {run.teacher.folder: run.teacher for run in runs}
    for run in [*runs, *teachers.values()]:
        with pytest.raises(SystemExit) as caught:
            main([*run.words("fit"), "--print_config"])
        assert caught.value.code == 0
        saved = yaml.safe_load(capsys.readouterr().out)
        schedule = saved["model"]["init_args"]["lr_schedule"]["init_args"]
        assert schedule["total_steps"] is None  # as long as the run


@pytest.mark.slow
@pytest.mark.timeout(1200)  # four starts of Python beside whatever else runs
def test_runs_are_processes_and_may_go_side_by_side(tmp_path):
    """As a user calls it: two jobs, nothing replaced."""
    variants = content(tmp_path)["variants"]
    del variants["rms"]
    words = arguments(tmp_path, "--jobs", "2", "--seeds", "[1]", variants=variants)
    main(["ablate", *words])
    results = json.loads((tmp_path / "ablation" / "results.json").read_text())
    assert set(results["variants"]["l2"]["scores"][SCORE]["seeds"]) == {"1"}
    assert "none, got l3" in results["variants"]["broken"]["failed"]["1"]
    assert (tmp_path / "ablation" / "students" / "l2" / "seed_1" / RECORD).is_file()
