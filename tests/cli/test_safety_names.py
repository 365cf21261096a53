# SPDX-License-Identifier: Apache-2.0
"""A configuration calls nothing that it should not.

Every payload would make the canary, a file, if it were called.
"""

import json

import malformed_place
import pytest
import torch

from scm_lightning.cli import main
from scm_lightning.cli.option_checks import specs

TYPED = (
    *("model", "data", "optimizer", "lr_scheduler", "metrics.features", "checkpoints"),
    *("trainer.callbacks", "trainer.logger", "trainer.strategy", "trainer.profiler"),
    *("trainer.plugins", "trainer.accelerator", "trainer.precision"),
    *(
        f"model.init_args.{name}"
        for name in (
            *("student", "teacher", "velocity", "path", "times", "tangents", "guidance", "vsd"),
            *("optimizer", "lr_schedule", "ema", "sweep", "student.init_args.time_embedding"),
        )
    ),
)
"""Options whose types are classes or functions."""
LISTS = ("trainer.callbacks", "trainer.logger", "trainer.plugins", "model.init_args.ema")
"""Those that take several."""


def payloads(canary):
    """Names and arguments of what would make the canary."""
    touch = f"touch {canary}"
    return {
        "os.system": {"command": touch},
        "logging.os.system": {"command": touch},
        "subprocess.Popen": {"args": ["touch", str(canary)]},
        "builtins.eval": {"source": f"open({str(canary)!r}, 'w')"},
        "builtins.open": {"file": str(canary), "mode": "w"},
        "torch.save": {"obj": 1, "f": str(canary)},
        "numpy.savetxt": {"fname": str(canary), "X": [1]},
        "webdataset.gopen": {"url": f"pipe:{touch}"},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole configuration and its data."""
    folder = tmp_path_factory.mktemp("safety")
    malformed_place.make(folder)
    with malformed_place.stopped():
        yield folder


def end_of(words):
    """Run a command to its refusal, or to where it would train."""
    try:
        main(words)
    except SystemExit as done:
        return done.code
    except malformed_place.Trained:
        return "trained"
    return "done"


def test_the_payloads_make_the_canary(tmp_path):
    """Called, they do: a canary that nobody makes has not been tested."""
    canary = tmp_path / "canary"
    torch.save(**payloads(canary)["torch.save"])
    assert canary.exists()


QUICK = ("model", "trainer.callbacks", "model.init_args.optimizer", "model.init_args.ema")
"""Of every kind of type one: a class, a list, a function, a list or a class."""


@pytest.mark.parametrize(
    "option",
    [pytest.param(each, marks=[] if each in QUICK else pytest.mark.slow) for each in TYPED],
)
def test_nothing_that_a_configuration_names_is_called(option, folder, capsys):
    """By its name, with arguments, and as an element of a list."""
    for name, options in payloads(folder / "canary").items():
        value = {"class_path": name, "init_args": options}
        forms = (name, json.dumps(value), *([json.dumps([value])] if option in LISTS else []))
        for written in forms:
            code = end_of(["fit", "--config", str(folder / "base.yaml"), f"--{option}={written}"])
            assert code == 2, (option, written)
            error = capsys.readouterr().err
            assert "Traceback" not in error
            assert not (folder / "canary").exists(), (option, written)


def test_an_augmentation_may_be_any_function_but_none_is_called_with_arguments(folder, capsys):
    """The one open type: Callable."""
    for name, options in payloads(folder / "canary").items():
        value = json.dumps({"class_path": name, "init_args": options})
        words = ["fit", "--config", str(folder / "teacher.yaml"), *teacher_words(folder)]
        assert end_of([*words, f"--model.init_args.augmentation={value}"]) == 2, name
        assert not (folder / "canary").exists(), name
    capsys.readouterr()


def teacher_words(folder):
    content = malformed_place.base(folder)["model"]["init_args"]
    return malformed_place._as_teacher(content)


def test_class_paths_are_found_wherever_they_are():
    nested = {"a": [{"class_path": "x", "init_args": {"b": {"class_path": "y"}}}], "c": ("d", 3)}
    assert [each["class_path"] for each in specs(nested)] == ["x", "y"]


@pytest.mark.parametrize("command", ["fit", "test", "bench", "ablate"])
@pytest.mark.parametrize("tag", ["apply:os.system", "new:os.system", "apply:builtins.exec"])
def test_yaml_makes_no_objects(command, tag, folder, tmp_path, capsys):
    canary, file = tmp_path / "canary", tmp_path / "object.yaml"
    said = f"touch {canary}" if "system" in tag else f"open({str(canary)!r}, 'w')"
    file.write_text(f"seed_everything: !!python/object/{tag} [{json.dumps(said)}]\n")
    assert end_of([command, "--config", str(file)]) == 2
    assert "could not determine a constructor" in capsys.readouterr().err
    inline = file.read_text().partition(": ")[2].strip()
    assert (
        end_of(["fit", "--config", str(folder / "base.yaml"), f"--seed_everything={inline}"]) == 2
    )
    assert not canary.exists()
    capsys.readouterr()
