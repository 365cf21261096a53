# SPDX-License-Identifier: Apache-2.0
"""Configurations of version 0.3.0, read under the names of 0.4.0.

There a student's module held the options of every objective; now the objective is an object with
options of its own. Anything that a 0.3.0 configuration could say is translated, and said; on the
command line the old names are refused with the new ones.
"""

import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from scm_lightning.saying import say

STUDENT = "scm_lightning.modules.ConsistencyModule"
OBJECTIVES = "scm_lightning.objectives."
MEAN_FLOW = "MeanFlowModule"

MOVED_CLASSES = {
    f"scm_lightning.modules.{name}": f"{OBJECTIVES}{name}"
    for name in ("AdaptiveVSD", "PairVelocity", "TeacherVelocity", "Velocity")
} | {
    "scm_lightning.cli.plan.GPU": "scm_lightning.bench.GPU",
    "scm_lightning.data.Digits": "scm_lightning.preparation.Digits",
}
FASHION = "scm_lightning.data.FashionMNIST"
"""Was a data module of its own; its shards are read as any."""

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
}
"""The same of a `DiffusionModule`."""
TABLES = {"ConsistencyModule": RENAMED, "DiffusionModule": RENAMED_OF_TEACHER}
NOTES = {"weight_constant": " and added to the sum of squares, not to their mean"}
ONLY_OF_STUDENTS = (
    RENAMED.keys() - RENAMED_OF_TEACHER.keys() - {"times", "weighting", "weighting_lr"}
)

ADAM_OF_MEAN_FLOW = {
    "class_path": "torch.optim.Adam",
    "init_args": {"lr": 1e-4, "betas": [0.9, 0.95]},
}
"""What a MeanFlow run of 0.3.0 had where none was given."""

DEFAULT_TANGENTS = {"method": "dual", "check": True, "compile": False}
"""Of 0.3.0, which wrote them down; now they are `dual`."""
UNWRITTEN = "Unable to serialize instance <function "
"""How 0.3.0 kept a function that nobody had given, such as the default optimizer."""

_said: set[str] = set()


def renamed(config: Any) -> Any:
    """Translate a configuration.

    Args:
        config: what a YAML file holds, of any version.

    Returns:
        The same for this version; a new one, if there was anything to translate.

    Raises:
        ValueError: if it asks for segments and intervals at once, as 0.3.0 refused too.
    """
    config = _with_shards_of_fashion(_with_moved_classes(config))
    model = config.get("model") if isinstance(config, Mapping) else None
    options = model.get("init_args") if isinstance(model, Mapping) else None
    if not isinstance(options, Mapping):
        return config
    assert isinstance(model, Mapping)
    is_mean_flow = str(model.get("class_path")).endswith(MEAN_FLOW)
    names = _names(model, options)
    old = [name for name in options if name in names]
    if not old and not is_mean_flow:
        return config
    kept = {name: value for name, value in options.items() if name not in names}
    if is_mean_flow:
        kept["student"] = kept.pop("network", None)
        kept = {"start_from_teacher": False, "optimizer": ADAM_OF_MEAN_FLOW, **kept}
        old.insert(0, "network")
    _move(options, names, kept, is_mean_flow)
    _say({name: {**names, "network": "student"}[name] for name in old})
    kind = {"class_path": STUDENT} if is_mean_flow else {}
    return {**config, "model": {**model, **kind, "init_args": kept}}


def place_of_old(option: str) -> str | None:
    """Where an option of 0.3.0 is now; None for any other.

    Args:
        option: its name, with all or none of what stands before it.
    """
    names = {"network": "student", **RENAMED_OF_TEACHER, **RENAMED}
    place = names.get(option.removeprefix("model.init_args."))
    return place and f"model.init_args.{place}"


def _names(model: Mapping[str, Any], options: Mapping[str, Any]) -> Mapping[str, str]:
    """Which table a model's options are of: an overlay may name no class."""
    if "objective" in options:
        return {}
    path = str(model.get("class_path", ""))
    try:
        kind = pkgutil.resolve_name(path)
        above = [each.__name__ for each in kind.__mro__]
        own = {*inspect.signature(kind).parameters}
    except Exception:  # no class, a short name, or a module that fails: the parser says which
        above, own = [], set()
    if above:
        found = (TABLES[name] for name in above if name in TABLES)
        return {name: place for name, place in next(found, {}).items() if name not in own}
    if path.endswith(("ConsistencyModule", MEAN_FLOW)) or ONLY_OF_STUDENTS & options.keys():
        return RENAMED
    return RENAMED_OF_TEACHER


def _move(
    options: Mapping[str, Any], names: Mapping[str, str], kept: dict[str, Any], is_mean_flow: bool
) -> None:
    """Put options where they are now."""
    segments, intervals = options.get("num_segments") or 1, options.get("num_intervals")
    if segments > 1 and intervals is not None:
        raise ValueError(
            f"discrete time is for a whole path, got num_intervals {intervals} and num_segments "
            f"{segments}; set one of them"
        )
    kind = "MeanFlow" if is_mean_flow else "Consistency"
    kind = "Segments" if segments > 1 else "Discrete" if intervals is not None else kind
    left_out = {"num_segments": segments == 1, "num_intervals": intervals is None}
    for name, place in names.items():
        if name not in options or left_out.get(name):
            continue
        if name == "vsd":
            kept["terms"] = [options[name]] if options[name] else []
        elif kind == "Discrete" and name in ("tangents", "compile"):
            continue  # it takes no derivative
        else:
            _put(kept, place.split("."), options[name])
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
        if "class_path" in tree and name != "objective":
            tree = tree.setdefault("init_args", {})
    tree[last] = value


def _are_default(tangents: Any) -> bool:
    """Whether tangents are given, and as they are without."""
    given = tangents.get("init_args", tangents) if isinstance(tangents, Mapping) else {}
    return bool(given) and given.items() <= DEFAULT_TANGENTS.items()


def _with_moved_classes(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {
            key: _with_moved_classes(value)
            for key, value in config.items()
            if not (isinstance(value, str) and value.startswith(UNWRITTEN))
        }
    if isinstance(config, list):
        return [_with_moved_classes(each) for each in config]
    return MOVED_CLASSES.get(config, config) if isinstance(config, str) else config


def _with_shards_of_fashion(config: Any) -> Any:
    data = config.get("data") if isinstance(config, Mapping) else None
    if not isinstance(data, Mapping) or data.get("class_path") != FASHION:
        return config
    if FASHION not in _said:
        say(f"{FASHION} is scm_lightning.data.Shards, which reads the shards at its root as before")
    _said.add(FASHION)
    given = {k: v for k, v in data.get("init_args", {}).items() if k not in ("source", "size")}
    options = {"num_test_samples": 10_000, **given}
    return {**config, "data": {"class_path": "scm_lightning.data.Shards", "init_args": options}}


def _say(names: Mapping[str, str]) -> None:
    """Say once in a process what was translated."""
    fresh = {old: new for old, new in names.items() if old not in _said}
    _said.update(fresh)
    if fresh:
        pairs = ", ".join(f"{old} is {new}{NOTES.get(old, '')}" for old, new in fresh.items())
        say(f"options of version 0.3.0, below model.init_args: {pairs}")
