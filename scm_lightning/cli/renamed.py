# SPDX-License-Identifier: Apache-2.0
"""Configurations of older versions, read under the names of this one.

In 0.3.0 a student's module held the options of every objective; now the objective is an object with
options of its own. Anything that a 0.3.0 configuration could say is translated, and said; on the
command line the old names are refused with the new ones.
"""

import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from scm_lightning.saying import say

STUDENT = "scm_lightning.modules.ConsistencyModule"
OBJECTIVES = "scm_lightning.objectives."
MEAN_FLOW = "MeanFlowModule"

FASHION = "scm_lightning.data.FashionMNIST"
"""Former data module; its shards are read as any."""
SHARDS = "scm_lightning.data.Shards"
MOVED_CLASSES = {
    f"scm_lightning.modules.{name}": f"{OBJECTIVES}{name}"
    for name in ("AdaptiveVSD", "PairVelocity", "TeacherVelocity", "Velocity")
} | {
    "scm_lightning.cli.plan.GPU": "scm_lightning.bench.GPU",
    "scm_lightning.data.Augmentation": "scm_lightning.modules.Augmentation",
    "scm_lightning.data.Digits": "scm_lightning.preparation.Digits",
    FASHION: SHARDS,
}
NO_DAMAGE = ("max_damaged", 0)
"""Option of `reading` in 0.3.0, and the only number of it that is still accepted."""
GONE = {
    "max_damaged": "since 0.4.0 a damaged sample ends the run; take the option out",
    "optimizer": "each model has its own; set model.init_args.optimizer",
    "lr_scheduler": "each model has its own; set model.init_args.lr_schedule",
}
"""Options of older versions, and what to do without them."""
UNUSED = ("optimizer", "lr_scheduler")
"""Options of Lightning's command line that older versions kept in `config.yaml`, at null."""

RENAMED = {
    "times": "objective.init_args.times",
    "tangents": "objective.init_args.tangents",
    "compile": "objective.init_args.tangents.compile",
    "tangent_bound": "objective.init_args.bound.kind",
    "tangent_norm_constant": "objective.init_args.bound.c",
    "tangent_warmup_steps": "objective.init_args.warmup.steps",
    "weighting": "objective.init_args.weighting",
    "weighting_lr": "objective.init_args.weighting_lr",
    "prior": "objective.init_args.prior",
    "num_intervals": "objective.init_args.num_intervals",
    "num_segments": "objective.init_args.num",
    "share_of_intervals": "objective.init_args.share_of_intervals",
    "weight_power": "objective.init_args.p",
    "weight_constant": "objective.init_args.c",
    "vsd": "terms",
    "intermediate_times": "sampling.intermediate_times",
    "sampling_steps": "sampling.num_steps",
    "sampling_guidance": "sampling.guidance",
    "num_teacher_steps": "sampling.teacher.num_steps",
    "sweep": "sampling.sweep",
}
"""Options of a student below model.init_args: in 0.3.0, and now."""
RENAMED_OF_TEACHER = {
    "num_sampling_steps": "sampling.num_steps",
    "sampling_guidance": "sampling.guidance",
    "label_dropout": "condition_dropout",
}
"""The same of a `DiffusionModule`, and what 0.4.0 called otherwise."""
STARTED = "start_from_teacher"
"""Option of a student until 0.5.0: true for weights of the teacher, now `init: teacher`."""
TABLES = {"ConsistencyModule": RENAMED, "DiffusionModule": RENAMED_OF_TEACHER}
NOTES = {"weight_constant": " and added to the sum of squares, not to their mean"}
ONLY_OF_STUDENTS = (
    RENAMED.keys() - RENAMED_OF_TEACHER.keys() - {"times", "weighting", "weighting_lr"}
)

ADAM_OF_MEAN_FLOW = {
    "class_path": "torch.optim.Adam",
    "init_args": {"lr": 1e-4, "betas": [0.9, 0.95]},
}
"""Optimizer of a MeanFlow run of 0.3.0 where none was given."""

DEFAULT_TANGENTS = {"method": "dual", "check": True, "compile": False}
"""Default tangents of 0.3.0, which wrote them down; now they are `dual`."""
UNWRITTEN = "Unable to serialize instance <function "
"""Start of what 0.3.0 kept for a function that nobody had given, such as the optimizer."""


def renamed(config: Any) -> Any:
    """Translate a configuration.

    Args:
        config: what a YAML file holds, of any version.

    Returns:
        The same for this version; a new one, if there was anything to translate.

    Raises:
        ValueError: if it asks for segments and intervals at once, as 0.3.0 refused too.
    """
    config = _with_moved_classes(config)
    if isinstance(config, Mapping):
        config = {key: x for key, x in config.items() if x is not None or key not in UNUSED}
    model = config.get("model") if isinstance(config, Mapping) else None
    options = model.get("init_args") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(options, Mapping):
        return config
    if STARTED in options:
        _say_once(f"an option of version 0.5.0, model.init_args.{STARTED}, is init")
        begins = {"init": "teacher" if options[STARTED] else None}
        options = begins | {name: value for name, value in options.items() if name != STARTED}
        config = {**config, "model": {**model, "init_args": options}}
    is_mean_flow = str(model.get("class_path")).endswith(MEAN_FLOW)
    names = _names(model, options)
    old = {name: names[name] for name in options if name in names}
    if not old and not is_mean_flow:
        return config
    kept = {name: value for name, value in options.items() if name not in names}
    if is_mean_flow:
        kept["student"] = kept.pop("network", None)
        kept = {"init": None, "optimizer": ADAM_OF_MEAN_FLOW, **kept}
        old = {"network": "student", **old}
        model = {**model, "class_path": STUDENT}
    _move(options, names, kept, is_mean_flow)
    pairs = ", ".join(f"{name} is {place}{NOTES.get(name, '')}" for name, place in old.items())
    _say_once(f"options of an older version, below model.init_args: {pairs}")
    return {**config, "model": {**model, "init_args": kept}}


def place_of_old(option: str) -> str | None:
    """Present place of an option of 0.3.0; None for any other.

    Args:
        option: its name, with all or none of what stands before it.
    """
    names = {"network": "student", STARTED: "init", **RENAMED_OF_TEACHER, **RENAMED}
    place = names.get(option.removeprefix("model.init_args."))
    return place and f"model.init_args.{place}"


def _names(model: Mapping[str, Any], options: Mapping[str, Any]) -> Mapping[str, str]:
    """Table that a model's options belong to: an overlay may name no class."""
    if "objective" in options:
        return {}
    path = str(model.get("class_path", ""))
    try:
        kind = pkgutil.resolve_name(path)
        above, own = kind.__mro__, inspect.signature(kind).parameters
    except Exception:  # no class, a short name, or a module that fails: the parser says which
        is_student = path.endswith(("ConsistencyModule", MEAN_FLOW))
        return RENAMED if is_student or ONLY_OF_STUDENTS & {*options} else RENAMED_OF_TEACHER
    found = next((TABLES[each.__name__] for each in above if each.__name__ in TABLES), {})
    return {name: place for name, place in found.items() if name not in own}


def _move(
    options: Mapping[str, Any], names: Mapping[str, str], kept: dict[str, Any], is_mean_flow: bool
) -> None:
    """Put options where they are now."""
    segments, intervals = options.get("num_segments", 1), options.get("num_intervals")
    if segments != 1 and intervals is not None:
        raise ValueError(
            f"discrete time is for a whole path, got num_intervals {intervals} and num_segments "
            f"{segments}; set one of them"
        )
    kind = "MeanFlow" if is_mean_flow else "Consistency"
    kind = "Segments" if segments != 1 else "Discrete" if intervals is not None else kind
    takes_no_derivative = kind == "Discrete"
    left_out = {
        "num_segments": segments == 1,
        "num_intervals": intervals is None,
        "tangents": takes_no_derivative,
        "compile": takes_no_derivative,
    }
    for name, place in names.items():
        if name in options and not left_out.get(name):
            value = options[name]
            if name == "vsd":
                value = [value] if value else []
            _put(kept, place.split("."), value)
    objective, student = kept.get("objective", {}), kept.get("student")
    # An overlay changes options of the objective below it, whichever that is, if it chooses none.
    is_whole = isinstance(student, Mapping) and "class_path" in student
    if is_whole and _are_default(objective.get("init_args", {}).get("tangents")):
        objective["init_args"]["tangents"] = "dual"
    if is_whole or is_mean_flow or {"num_segments", "num_intervals"} & options.keys():
        kept["objective"] = {"class_path": f"{OBJECTIVES}{kind}", **objective}


def _put(tree: dict[str, Any], place: list[str], value: Any) -> None:
    """Set a value below a map; one with a class_path takes it among its init_args."""
    *above, last = place
    for name in above:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ValueError(
                f"{name} must be a map beside an option of version 0.3.0, {last}, got {tree}; give "
                "both under the names of this version"
            )
        if "class_path" in tree:
            tree = tree.setdefault("init_args", {})
    tree[last] = value


def _are_default(tangents: Any) -> bool:
    """Tell whether tangents are given, and equal the default."""
    given = tangents.get("init_args", tangents) if isinstance(tangents, Mapping) else {}
    return bool(given) and given.items() <= DEFAULT_TANGENTS.items()


def _with_moved_classes(config: Any) -> Any:
    if isinstance(config, list):
        return [_with_moved_classes(each) for each in config]
    if not isinstance(config, Mapping):
        return MOVED_CLASSES.get(config, config) if isinstance(config, str) else config
    given = config.get("init_args") or {}
    if config.get("class_path") == FASHION and isinstance(given, Mapping):
        _say_once(f"{FASHION} is {SHARDS}, which reads the shards at its root as before")
        options = {key: x for key, x in given.items() if key not in ("source", "size")}
        config = {"class_path": SHARDS, "init_args": {"num_test_samples": 10_000, **options}}
    return {
        key: _with_moved_classes(value)
        for key, value in config.items()
        if (key, value) != NO_DAMAGE and not str(value).startswith(UNWRITTEN)
    }


@cache
def _say_once(line: str) -> None:
    say(line)
