# SPDX-License-Identifier: Apache-2.0
"""Bad input: one line that says what must hold, what came and what to do; exit code 2."""

import subprocess
import sys
from pathlib import Path

import malformed_place
import pytest
import torch

from scm_lightning.cli import main

CONFIG = Path(__file__).parents[2] / "configs" / "digits_scd.yaml"
SCT = [
    "--model.init_args.teacher",
    "null",
    "--model.init_args.velocity.class_path",
    "scm_lightning.modules.PairVelocity",
]

SAMPLING = "model.init_args.sampling"
OBJECTIVE = "model.init_args.objective.init_args"


@pytest.fixture(scope="module", autouse=True)
def _one_parser():
    with malformed_place.parser_built_once():
        yield


def refused(capsys, *args):
    """The one line of standard error with which the command line refuses the arguments."""
    with pytest.raises(SystemExit) as caught:
        main([*args])
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert caught.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("scm: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([f"--{OBJECTIVE}.warmup.step", "3"], "step"),
        (["--nonsense", "3"], "nonsense"),
        (["--trainer.max_steps", "many"], "trainer.max_steps must be an int, got many"),
        (
            [f"--{OBJECTIVE}.bound.kind", "l3"],
            "bound.kind must be one of l2, rms, clip, none, got l3",
        ),
        (
            [f"--{OBJECTIVE}.bound", "l2"],
            "bound must be its options by name, {NAME: VALUE, ...}, got l2",
        ),
        (
            [*SCT, f"--{OBJECTIVE}.warmup", "1000"],
            "warmup must be its options by name, {NAME: VALUE, ...}, got 1000",
        ),
        (
            ["--model.init_args.objective", "scm_lightning.objectives.ConsistencyObjective"],
            "ConsistencyObjective, which is abstract; name one that is derived from it",
        ),
        (
            ["--model.init_args.terms", "{class_path: scm_lightning.objectives.AdaptiveVSD}"],
            "terms must be a list, each a class of the kind Term, got {'class_path': ",
        ),
        (
            [f"--{OBJECTIVE}.times", "{class_path: torch.nn.Linear}"],
            "Only the class_path of TimeProposal itself is accepted",
        ),
        (
            [f"--{OBJECTIVE}.tangents.method", "slow"],
            "finite_difference or a class of the kind TangentMethod, got slow",
        ),
        (
            ["--model.init_args.student.class_path", "scm_lightning.networks.MPL"],
            "module 'scm_lightning.networks' has no attribute 'MPL'",
        ),
        (["--model.init_args.student.init_args.num_blocks", "-1.5"], "num_blocks"),
        (["--model.init_args.teacher", "nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["--model.init_args.path.sigma_data", "-1"], "sigma_data must be a positive number"),
        ([f"--{OBJECTIVE}.times.P_std", "0"], "P_std a positive one, got"),
        (
            [*SCT, f"--{SAMPLING}.intermediate_times", "[2.0]"],
            "sampling times must be angles in [1e-06, pi/2], got [1.5645464081731977, 2.0]",
        ),
        (
            [*SCT, f"--{SAMPLING}.intermediate_times", "[0.5, 1.1]"],
            "times must descend",
        ),
        ([*SCT[:2]], "TeacherVelocity needs a teacher, got none; set teacher"),
        (
            [*SCT, "--model.init_args.student.init_args.data_shape", "[1, 8, 9]"],
            "takes samples of shape (1, 8, 9), got (1, 8, 8); set data_shape",
        ),
        (
            [*SCT, "--model.init_args.student.init_args.num_classes", "0"],
            "built without classes but got labels",
        ),
        ([*SCT, "--data.init_args.batch_size", "0"], "batch sizes must be at least 1"),
        (
            [*SCT, "--trainer.accelerator", "cpu", "--trainer.precision", "16-mixed"],
            "trainer.precision 16-mixed needs a GPU, got a CPU",
        ),
        ([*SCT, "--diagnostics.every_n_steps", "0"], "every_n_steps must be at least 1"),
        (
            [*SCT, "--data.init_args.root", str(Path(__file__))],
            "must be a folder, got a file",
        ),
        ([*SCT, "--ckpt_path", "nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_fit_refuses(args, message, capsys, tmp_path):
    fixed = [
        "--trainer.default_root_dir",
        str(tmp_path),
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.enable_model_summary",
        "false",
    ]
    root = [] if "--data.init_args.root" in args else ["--data.init_args.root", str(tmp_path / "s")]
    assert message in refused(capsys, "fit", "--config", str(CONFIG), *fixed, *root, *args)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "warmup: 1000",
            "objective.init_args.warmup must be its options by name, {NAME: VALUE, ...}, got 1000",
        ),
        ("bound: l2", "bound must be its options by name, {NAME: VALUE, ...}, got l2"),
        ("bound: {kind: l1}", "bound.kind must be one of l2, rms, clip, none, got l1"),
    ],
)
def test_a_file_whose_objective_has_a_bare_value(options, message, capsys, tmp_path):
    """In a file the parser reads the whole objective at once."""
    file = tmp_path / "more.yaml"
    file.write_text(f"model: {{init_args: {{objective: {{init_args: {{{options}}}}}}}}}")
    assert message in refused(capsys, "fit", "--config", str(CONFIG), "--config", str(file))


STUDENT = "model.init_args.student"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("trainer.max_step=9", "trainer.max_step is no option; did you mean trainer.max_steps?"),
        (f"{STUDENT}.init_args.num_block=3", "num_block is no option; did you mean num_blocks?"),
        (f"{STUDENT}.init_args.heads=3", "heads is no option; there are data_shape, dropout, emb"),
        (f"{STUDENT}.init_args.num_blocks=1.5", "init_args.num_blocks must be an int, got 1.5"),
        (f"{STUDENT}=torch.optim.Adam", "of the kind Module, got torch.optim.Adam, which is none"),
        (f"{STUDENT}=scm_lightning.networks.MPL", "has no attribute 'MPL'; did you mean MLP?"),
        ("trainer.callbacks=[{class_path: Nothing}]", "each a class of the kind Callback or a"),
        ("data=3", "got 3; name one by class_path, beside its init_args"),
        ("metrics.kid=often", "metrics.kid must be true or false, got often"),
        ("metrics=often", "metrics must be its options by name, {NAME: VALUE, ...}, got often"),
        ("model=null", "model must be given; add --config FILE"),
        ("model.init_args.optimizer.init_args.betas=[0.9]", "must be a list of 2, each a float"),
        ("model.init_args.sampling.swep.steps=3", "swep.steps is no option; there are"),
    ],
)
def test_key_type_and_value_are_named(option, message, capsys):
    """Whatever the depth at which the parser finds it."""
    line = refused(capsys, "fit", "--config", str(CONFIG), f"--{option}")
    assert message in line
    assert line.startswith(f"scm: error: {option.partition('=')[0]} ")


@pytest.mark.parametrize("word", ["-trainer.max_steps=3", "max_steps=3"])
def test_an_option_begins_with_two_dashes(word, capsys):
    line = refused(capsys, "fit", "--config", str(CONFIG), word)
    assert f"two dashes, --NAME VALUE, got {word}" in line


def test_a_missing_configuration_is_named(capsys):
    assert "nowhere.yaml" in refused(capsys, "fit", "--config", "nowhere.yaml")


def test_an_unknown_command_is_named(capsys):
    assert "there is no subcommand nonsense, only fit, " in refused(capsys, "nonsense")


def test_broken_yaml_is_refused_with_its_place(capsys, tmp_path):
    (tmp_path / "broken.yaml").write_text("model: [1, 2")
    line = refused(capsys, "fit", "--config", str(tmp_path / "broken.yaml"))
    assert "Problems parsing config" in line
    assert "line 1, column 8" in line


@pytest.mark.parametrize("stage", ["test", "predict", "validate"])
def test_a_run_that_was_never_trained_is_refused(stage, capsys, tmp_path):
    """Nothing is sampled from random weights."""
    root = ["--trainer.default_root_dir", str(tmp_path)]
    line = refused(capsys, stage, "--config", str(CONFIG), *SCT, *root)
    assert f"there is no checkpoint {tmp_path}/checkpoints/last.ckpt; train first" in line


def test_foreign_checkpoints_are_refused(capsys, tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for name, message in {
        "text.ckpt": "is not a checkpoint, or is damaged",
        "other.ckpt": "is not a checkpoint of scm_lightning",
    }.items():
        file = ["--ckpt_path", str(tmp_path / name)]
        assert message in refused(capsys, "test", "--config", str(CONFIG), *SCT, *file)


def test_the_program_itself_refuses_in_one_line():
    """As a process: exit code 2, and not a word of a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "scm_lightning", "fit", "--config", "nowhere.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_help_and_version_do_not_wait_for_torch():
    code = (
        "import sys; from scm_lightning.cli import main; main(['--help']); main(['--version']);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: scm" in done.stdout
    assert "scm_lightning 0." in done.stdout


def test_a_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("SCM_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        main(["fit", "--config", "nowhere.yaml"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_a_lack_of_memory_is_one_line(error, monkeypatch, capsys):
    def run(words):
        raise error

    monkeypatch.setattr(sys.modules[main.__module__], "_run", run)
    assert "there is not enough memory" in refused(capsys, "fit")


def test_other_errors_of_ours_keep_their_traceback(monkeypatch):
    def run(words):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(sys.modules[main.__module__], "_run", run)
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["fit"])
