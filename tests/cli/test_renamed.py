# SPDX-License-Identifier: Apache-2.0
"""Configurations and checkpoints of 0.3.0: read under the new names, and said."""

import copy
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from gaussian import PATH
from lightning.pytorch import LightningModule
from tiny import loader, mlp, trainer, wake

from scm_lightning import ConsistencyModule
from scm_lightning.cli import main
from scm_lightning.cli import renamed as names
from scm_lightning.cli.renamed import place_of_old, renamed
from scm_lightning.objectives import AdaptiveVSD, Consistency, Discrete, MeanFlow, TeacherVelocity

RUN = Path(__file__).parents[1] / "data" / "run_0.3.0" / "one_file"
OLD = yaml.safe_load((RUN / "config.yaml").read_text())


def student(**options):
    """The kept configuration of 0.3.0, with some of its options changed; what it is now."""
    config = copy.deepcopy(OLD)
    config["model"]["init_args"] |= options
    return renamed(config)["model"]["init_args"]


@pytest.fixture(autouse=True)
def _nothing_said():
    names._say_once.cache_clear()


def test_a_kept_configuration_is_translated_whole(capsys):
    """Every option of it has its place; none is left, and one line says where each went."""
    found = student()
    assert found["objective"] == {
        "class_path": "scm_lightning.objectives.Consistency",
        "init_args": {
            "times": {"P_mean": -1.2, "P_std": 1.8},
            "tangents": "dual",
            "bound": {"kind": "l2", "c": 0.1},
            "warmup": {"steps": 30},
            "weighting": "learned",
            "weighting_lr": 0.01,
            "prior": "folded",
        },
    }
    assert found["sampling"] == {
        "intermediate_times": [1.1],
        "guidance": 1.0,
        "teacher": {"num_steps": 18},
        "sweep": None,
    }
    assert found["terms"] == []
    kept = {"student", "velocity", "teacher", "init", "path", "guidance"}
    kept |= {"optimizer", "lr_schedule", "ema", "objective", "sampling", "terms"}
    assert found.keys() == kept
    assert found["velocity"]["class_path"] == "scm_lightning.objectives.PairVelocity"
    printed = " ".join(capsys.readouterr().out.split())
    assert "tangent_warmup_steps is objective.init_args.warmup.steps" in printed
    assert renamed({"model": {"init_args": found}}) == {"model": {"init_args": found}}
    student()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("old", "new"), [(True, "teacher"), (False, None)])
def test_a_configuration_of_0_5_says_what_a_student_begins_with(old, new):
    options = {"student": {"class_path": "MLP"}, "objective": None, "start_from_teacher": old}
    found = renamed({"model": {"class_path": "ConsistencyModule", "init_args": options}})
    kept = {"student": {"class_path": "MLP"}, "objective": None, "init": new}
    assert found["model"]["init_args"] == kept


def test_options_choose_the_objective():
    discrete = student(num_intervals=9)["objective"]
    assert discrete["class_path"].endswith(".Discrete")
    assert discrete["init_args"]["num_intervals"] == 9
    assert "tangents" not in discrete["init_args"]
    segments = student(num_segments=3)["objective"]
    assert (segments["class_path"], segments["init_args"]["num"]) == (
        "scm_lightning.objectives.Segments",
        3,
    )
    vsd = {"class_path": "scm_lightning.modules.AdaptiveVSD", "init_args": {"weight": 0.5}}
    (term,) = student(vsd=vsd)["terms"]
    assert term == {**vsd, "class_path": "scm_lightning.objectives.AdaptiveVSD"}
    with pytest.raises(ValueError, match="got num_intervals 9 and num_segments 3; set one"):
        student(num_intervals=9, num_segments=3)


def test_overlays_name_no_class_and_change_what_they_name():
    clipping = renamed({"model": {"init_args": {"tangent_bound": "clip"}}})["model"]["init_args"]
    assert clipping == {"objective": {"init_args": {"bound": {"kind": "clip"}}}}
    size = renamed({"model": {"init_args": {"sampling_guidance": 1.2}}})["model"]["init_args"]
    assert size == {"sampling": {"guidance": 1.2}}
    untouched = {"model": {"init_args": {"student": {"init_args": {"dropout": 0.1}}}}}
    assert renamed(untouched) == untouched
    part = {"student": {"init_args": {"dropout": 0.1}}, "tangent_warmup_steps": 7}
    smaller = renamed({"model": {"init_args": part}})["model"]["init_args"]
    assert smaller["objective"] == {"init_args": {"warmup": {"steps": 7}}}


@pytest.mark.parametrize("off", [{"num_intervals": None}, {"num_segments": 1}])
def test_an_overlay_turns_intervals_and_segments_off(off):
    objective = renamed({"model": {"init_args": off}})["model"]["init_args"]["objective"]
    assert objective == {"class_path": "scm_lightning.objectives.Consistency"}


def test_tangents_are_short_only_where_they_are_as_without():
    """A run of 0.3.0 wrote the default down; compared with `dual` it would be another run."""
    for given in ({"method": "dual"}, {"class_path": "x", "init_args": {"check": True}}):
        assert student(tangents=given)["objective"]["init_args"]["tangents"] == "dual"
    other = student(tangents={"method": "two_pass"})["objective"]["init_args"]["tangents"]
    assert other == {"method": "two_pass", "compile": False}
    assert student(compile=True)["objective"]["init_args"]["tangents"] != "dual"
    part = renamed({"model": {"init_args": {"compile": False}}})["model"]["init_args"]
    assert part["objective"] == {"init_args": {"tangents": {"compile": False}}}


class Foreign(LightningModule):
    """Somebody's module, with options that a student of 0.3.0 had too."""

    def __init__(self, compile=False, sweep=None): ...  # noqa: A002


class Own(ConsistencyModule):
    """A subclass with options of its own."""

    def __init__(self, *args, prior=0.5, **options): ...


def test_options_that_a_class_takes_are_its_own():
    foreign = {"class_path": f"{__name__}.Foreign", "init_args": {"compile": True, "sweep": 3}}
    assert renamed({"model": foreign}) == {"model": foreign}
    own = {"class_path": f"{__name__}.Own", "init_args": {"prior": 2.0, "times": {"P_mean": 1.0}}}
    assert renamed({"model": own})["model"]["init_args"] == {
        "prior": 2.0,
        "objective": {"init_args": {"times": {"P_mean": 1.0}}},
    }


def test_a_finished_run_of_0_3_0_is_finished(tmp_path, capsys):
    """Nothing that this version says otherwise makes it another run."""
    shutil.copytree(RUN, tmp_path / "run")
    place = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_steps", "20"]
    main(["fit", "--config", str(RUN.with_name("digits.yaml")), *place])
    assert "already at step 20 of 20" in " ".join(capsys.readouterr().out.split())


def test_a_mean_flow_module_is_a_student_of_that_objective(capsys):
    options = {"network": {"class_path": "x"}, "share_of_intervals": 0.5, "weight_constant": 1e-3}
    old = {"class_path": "scm_lightning.modules.MeanFlowModule", "init_args": options}
    model = renamed({"model": old})["model"]
    assert model["class_path"] == "scm_lightning.modules.ConsistencyModule"
    found = model["init_args"]
    assert found["student"] == {"class_path": "x"}
    assert found["init"] is None
    assert found["optimizer"]["class_path"] == "torch.optim.Adam"
    assert found["objective"] == {
        "class_path": "scm_lightning.objectives.MeanFlow",
        "init_args": {"share_of_intervals": 0.5, "c": 1e-3},
    }
    unwritten = "Unable to serialize instance <function MeanFlowModule.<lambda> at 0x7f9c>"
    kept = renamed({"model": {**old, "init_args": {**options, "optimizer": unwritten}}})
    assert kept["model"]["init_args"]["optimizer"] == found["optimizer"]
    assert "added to the sum of squares" in " ".join(capsys.readouterr().out.split())


def test_teachers_are_translated_too():
    old = {"class_path": "scm_lightning.modules.DiffusionModule"}
    options = {"network": {}, "times": {}, "weighting": "learned", "num_sampling_steps": 7}
    options["label_dropout"] = 0.1
    found = renamed({"model": {**old, "init_args": options}})["model"]["init_args"]
    assert found == {
        "network": {},
        "times": {},
        "weighting": "learned",
        "sampling": {"num_steps": 7},
        "condition_dropout": 0.1,
    }


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("tangent_bound=rms", "tangent_bound is model.init_args.objective.init_args.bound.kind"),
        ("times.P_mean=-1", "times is model.init_args.objective.init_args.times"),
        ("sweep.t_mid=[]", "sweep is model.init_args.sampling.sweep"),
        ("network.init_args.dropout=0", "network is model.init_args.student"),
        ("label_dropout=0.1", "label_dropout is model.init_args.condition_dropout"),
    ],
)
def test_on_the_command_line_an_old_name_is_refused_with_the_new_one(option, place, capsys):
    """Once, and also where something below it is set."""
    assert place_of_old("batch_size") is None
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(RUN.with_name("digits.yaml")), f"--model.init_args.{option}"])
    line = capsys.readouterr().err
    assert f"its name is now {place.partition(' is ')[2]}" in line
    assert line.count("its name is now") == 1


def as_of_0_3_0(checkpoint, kind, moved):
    """A checkpoint as that version wrote it."""
    checkpoint["scm_lightning"] = {
        **{key: x for key, x in checkpoint["scm_lightning"].items() if key != "objective"},
        "module": kind,
    }
    for new, old in moved.items():
        checkpoint["state_dict"] = {
            name.replace(new, old): weight for name, weight in checkpoint["state_dict"].items()
        }
    return checkpoint


CASES = {
    "consistency": (
        lambda: ConsistencyModule(
            *(wake(mlp()), TeacherVelocity(), wake(mlp())), path=PATH, terms=[AdaptiveVSD()]
        ),
        {"objective.weighting_head.": "weighting_head.", "terms.0.": "vsd."},
    ),
    "mean_flow": (
        lambda: ConsistencyModule(wake(mlp(two_times=True)), objective=MeanFlow(), path=PATH),
        {"student.": "network."},
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_checkpoints_of_0_3_0_go_on_to_the_same_bits(kind, tmp_path):
    """Weights, moments and counts: three steps more of both are the same."""
    make, moved = CASES[kind]
    run = trainer(3)
    run.fit(make(), loader())
    new, old = tmp_path / "new.ckpt", tmp_path / "old.ckpt"
    run.save_checkpoint(new)
    torch.save(as_of_0_3_0(torch.load(new, weights_only=False), kind, moved), old)
    found = []
    for file in (new, old):
        torch.manual_seed(5)
        module = make()
        trainer(6).fit(module, loader(), ckpt_path=file)
        found.append(module.state_dict())
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())


def test_a_run_does_not_change_its_objective(tmp_path):
    """Weights would fit; what they were trained for would be another."""
    run = trainer(1)
    run.fit(ConsistencyModule(mlp(), objective=Consistency(), path=PATH), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    module = ConsistencyModule(mlp(), objective=Discrete(8), path=PATH)
    with pytest.raises(ValueError, match="run with objective Discrete, got Consistency"):
        trainer(2).fit(module, loader(), ckpt_path=tmp_path / "last.ckpt")


def test_arguments_of_0_3_0_by_position_are_refused():
    with pytest.raises(ValueError, match="objective must be an Objective, got False"):
        ConsistencyModule(mlp(), TeacherVelocity(), mlp(), False, path=PATH)


@pytest.mark.parametrize(
    ("name", "place"), [("log_weight", "log_weight of the objective"), ("samplers", "draws")]
)
def test_a_subclass_that_overrides_what_moved_is_refused(name, place):
    message = f"Mine.{name} would not be called: since 0.4.0 it is {place}"
    with pytest.raises(TypeError, match=re.escape(message)):
        type("Mine", (ConsistencyModule,), {name: lambda self: None})


def test_data_modules_that_moved(capsys):
    """Shards of Fashion-MNIST are read as any, and its files no longer asked for."""
    old = {"root": "x", "source": "/files", "size": 16, "batch_size": 7}
    data = {"class_path": "scm_lightning.data.FashionMNIST", "init_args": old}
    found = renamed({"data": data})["data"]
    options = {"num_test_samples": 10_000, "root": "x", "batch_size": 7}
    assert found == {"class_path": "scm_lightning.data.Shards", "init_args": options}
    for nothing in ({}, {"init_args": None}):
        data = {"class_path": "scm_lightning.data.FashionMNIST", **nothing}
        assert renamed(data)["init_args"] == {"num_test_samples": 10_000}
    listed = {"class_path": "scm_lightning.data.FashionMNIST", "init_args": [1]}
    assert renamed(listed)["init_args"] == [1]  # for the parser to refuse
    digits = {"data": {"class_path": "scm_lightning.data.Digits"}}
    assert renamed(digits)["data"]["class_path"] == "scm_lightning.preparation.Digits"


def test_values_that_0_3_0_refused_are_left_for_the_parser_to_refuse():
    for segments in (0, "two", None):
        found = student(num_segments=segments)["objective"]
        assert found["class_path"] == "scm_lightning.objectives.Segments"
        assert found["init_args"]["num"] == segments


@pytest.mark.parametrize("options", [{"sampling": "fast"}, {"sampling": None}])
def test_an_old_option_beside_a_new_one_that_is_no_map(options):
    with pytest.raises(ValueError, match="sampling must be a map beside an option of version"):
        student(**options)
